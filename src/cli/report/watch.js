// Draws the page from the JSON document of `continuo watch` that stands in it (docs/formats/watch.md). Nothing is
// computed here that the document does not say.
"use strict";

const kRows = ["CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_BOOTTIME", "CLOCK_REALTIME", "CLOCK_TAI", "kvmclock",
               "counter"];

function shortName(clock) {
    return clock.replace("CLOCK_", "");
}

function seconds(ns) {
    return `${(ns / 1e9).toFixed(3)} s`;
}

/// An exact number with its bound, in ns while that can be read, else in a unit beside it.
function withBound(ns, bound) {
    return `${ns.toLocaleString("en")} ±${bound.toLocaleString("en")} ns`;
}

function fillHead() {
    const setup = data.setup;
    const sources = [setup.kvmclock_page ? "kvmclock's page" : null, setup.vmclock, setup.phc].filter(s => s);
    document.getElementById("summary").textContent =
        `Linux ${setup.kernel}, clocksource ${setup.clocksource}. ${setup.cpus.length} CPUs, ${setup.rate_hz} passes a second ` +
        `on each, for ${showNs(data.ran_ns)}; a pass took ${showNs(data.pass_cost_ns.mean)} in the mean. ` +
        (sources.length ? `Also read: ${sources.join(", ")}.` : "");
    const stops = data.events.filter(e => e.blackout_ns !== null);
    const blackout = Math.max(0, ...stops.map(e => e.blackout_ns));
    const back = data.clocks.reduce((sum, c) => sum + c.backward_within_cpu + c.backward_across_cpus, 0);
    const seams = data.events.flatMap(e => e.clocks).filter(c => c.clock === "CLOCK_MONOTONIC").map(c => Math.abs(c.seam_ns));
    fillTiles([[data.events_total, "events"], [showNs(blackout), "longest blackout"], [back.toLocaleString("en"), "steps back"],
               [seams.length ? showNs(Math.max(...seams)) : "–", "largest seam of MONOTONIC"],
               [data.passes.toLocaleString("en"), "passes"]]);
    if (!data.events.some(e => e.reference))
        document.getElementById("reference").textContent =
            ": this guest had no clock of the host's to hold it against (vmclock, or KVM's PTP clock)";
}

/// What whoever had this watched has to say of it: sections of rows, or of lines as they were printed.
function fillStory() {
    for (const section of data.story || []) {
        const place = document.getElementById("story");
        place.append(element("h2", {}, section.title));
        if (section.text)
            place.append(element("p", {}, section.text));
        if (section.rows) {
            const body = element("tbody", {});
            for (const [name, ...cells] of section.rows)
                body.append(element("tr", {}, element("th", {}, name), ...cells.map(cell => element("td", {}, cell))));
            place.append(element("div", {class: "scroll"}, element("table", {}, body)));
        }
        if (section.lines)
            place.append(element("pre", {class: "mono"}, section.lines.join("\n")));
    }
}

function seamCell(seam) {
    if (!seam)
        return element("td", {class: "cell none"}, "–");
    const zero = Math.abs(seam.seam_ns) <= seam.bound_ns;
    const cell = element("td", {class: `cell ${zero ? "kept" : "broken"}`, title: `jump ${showNs(seam.jump_ns)}, by ${seam.method}`},
                         element("b", {}, seam.clock === "counter" ? "" : withBound(seam.seam_ns, seam.bound_ns)));
    if (seam.lost_ns !== null)
        cell.append(element("small", {}, `lost ${withBound(seam.lost_ns, seam.lost_bound_ns)}`));
    if (!seam.cpus_agree)
        cell.append(element("small", {}, "CPUs differ"));
    return cell;
}

function fillEvents() {
    const worthIt = c => c.clock !== "counter" || c.lost_ns !== null;
    const shown = kRows.filter(name => data.events.some(e => e.clocks.some(c => c.clock === name && worthIt(c))));
    const rows = data.events.map(e => [
        element("th", {id: `event-${e.number}`}, String(e.number)), seconds(e.at_ns), e.reasons.join(", "),
        e.blackout_ns === null ? "–" : showNs(e.blackout_ns),
        e.since_stop_ns === null ? "–" : showNs(e.since_stop_ns),
        ...shown.map(name => seamCell(e.clocks.find(c => c.clock === name)))]);
    if (rows.length === 0)
        rows.push([element("th", {}, ""), "Every clock kept its line."]);
    fillTable("events", ["", "at", "what", "blackout", "since the stop", ...shown.map(shortName)], rows);
}

/// A numbered line for each event.
const marks = {
    id: "marks",
    afterDatasetsDraw(chart) {
        const {ctx, chartArea, scales} = chart;
        ctx.save();
        ctx.strokeStyle = "#8a94a3";
        ctx.fillStyle = "#1c2430";
        ctx.font = "11px system-ui, 'DejaVu Sans', sans-serif";
        ctx.setLineDash([3, 3]);
        for (const event of data.events) {
            const x = scales.x.getPixelForValue(event.at_ns / 1e9);
            if (x < chartArea.left || x > chartArea.right)
                continue;
            ctx.beginPath();
            ctx.moveTo(x, chartArea.top);
            ctx.lineTo(x, chartArea.bottom);
            ctx.stroke();
            ctx.fillText(String(event.number), x + 3, chartArea.top + 10);
        }
        ctx.restore();
    }
};

const kTimeAxis = {type: "linear", min: 0, title: {display: true, text: "s since the start"}, grid: {color: "#eceff3"}};
let timeline = null;

function drawTimeline(which) {
    const series = data.timeline.less_monotonic_raw_ns;
    const names = Object.keys(series).filter(name => which === "" || name === which);
    const all = Object.keys(series);
    if (timeline)
        timeline.destroy();
    timeline = new Chart(document.getElementById("timeline"), {
        type: "line",
        data: {datasets: names.map(name => ({
            label: shortName(name), borderColor: kColours[all.indexOf(name)], backgroundColor: kColours[all.indexOf(name)],
            borderWidth: 2, pointRadius: names.length === 1 ? 1.5 : 0, pointHitRadius: 6, stepped: "before", spanGaps: true,
            borderDash: all.indexOf(name) % 2 ? [6, 3] : [],
            data: data.timeline.at_ns.map((at, i) => ({x: at / 1e9, y: series[name][i]}))
        }))},
        plugins: [marks],
        options: {
            responsive: true, maintainAspectRatio: false, animation: false, parsing: false,
            interaction: {mode: "nearest", intersect: false},
            scales: {x: kTimeAxis, y: {ticks: {callback: value => showNs(value)}, grid: {color: "#eceff3"}}},
            plugins: {legend: {position: "right", labels: {boxWidth: 18}},
                      tooltip: {callbacks: {title: items => items.length ? seconds(items[0].parsed.x * 1e9) : "",
                                            label: item => `${item.dataset.label} ${item.parsed.y.toLocaleString("en")} ns`}}}
        }
    });
}

function drawHoles() {
    new Chart(document.getElementById("holes"), {
        type: "line",
        data: {datasets: [{label: "longest hole", borderColor: "#c0504d", backgroundColor: "#c0504d", borderWidth: 1.5, pointRadius: 0,
                           stepped: "before",
                           data: data.timeline.at_ns.map((at, i) => ({x: at / 1e9, y: data.timeline.longest_hole_ns[i]}))}]},
        plugins: [marks],
        options: {responsive: true, maintainAspectRatio: false, animation: false, parsing: false,
                  scales: {x: kTimeAxis, y: {min: 0, ticks: {callback: value => showNs(value)}, grid: {color: "#eceff3"}}},
                  plugins: {legend: {display: false}, tooltip: {enabled: false}}}
    });
}

/// Each reading from its least to its most.
const bars = {
    id: "bars",
    afterDatasetsDraw(chart) {
        const {ctx, scales} = chart;
        ctx.save();
        ctx.lineWidth = 2;
        for (const [at, lo, hi] of chart.data.datasets[0].readings) {
            const x = scales.x.getPixelForValue(at / 1e6);
            ctx.strokeStyle = lo <= 0 && hi >= 0 ? "#1f4e79" : "#c0504d";
            ctx.beginPath();
            ctx.moveTo(x, scales.y.getPixelForValue(lo));
            ctx.lineTo(x, scales.y.getPixelForValue(hi));
            ctx.stroke();
        }
        const y = scales.y.getPixelForValue(0);
        ctx.lineWidth = 1;
        ctx.strokeStyle = "#1c2430";
        ctx.beginPath();
        ctx.moveTo(chart.chartArea.left, y);
        ctx.lineTo(chart.chartArea.right, y);
        ctx.stroke();
        ctx.restore();
    }
};
let seam = null;

function drawSeam(number, clock) {
    const event = data.events.find(e => String(e.number) === number);
    const readings = event ? event.picture[clock] : [];
    if (seam)
        seam.destroy();
    seam = new Chart(document.getElementById("seam"), {
        type: "scatter",
        data: {datasets: [{label: shortName(clock), readings, pointRadius: 0,
                           data: readings.flatMap(([at, lo, hi]) => [{x: at / 1e6, y: lo}, {x: at / 1e6, y: hi}])}]},
        plugins: [bars],
        options: {responsive: true, maintainAspectRatio: false, animation: false,
                  scales: {x: {title: {display: true, text: "ms since the first reading after the event"}, grid: {color: "#eceff3"}},
                           y: {ticks: {callback: value => showNs(value)}, title: {display: true, text: "off the line from before"},
                               grid: {color: "#eceff3"}}},
                  plugins: {legend: {display: false}, tooltip: {enabled: false}}}
    });
}

function fillClocks() {
    fillTable("clocks", ["clock", "readings", "largest jump", "back within a CPU", "back across CPUs", "steps", "all seams"],
              data.clocks.map(c => {
                  const kernel = c.clock.startsWith("CLOCK_");
                  return [element("th", {}, c.clock), c.readings, kernel ? showNs(c.largest_jump_ns) : "–",
                          kernel || c.clock === "counter" ? c.backward_within_cpu : "–",
                          kernel || c.clock === "counter" ? c.backward_across_cpus : "–", c.steps,
                          c.clock === "counter" ? "–" : withBound(c.seam_sum_ns, c.seam_sum_bound_ns)];
              }));
    for (const c of data.clocks.filter(clock => clock.worst_backward)) {
        const worst = c.worst_backward;
        document.getElementById("proofs").append(element("p", {},
            `${c.clock}, its worst step back, ${worst.size.toLocaleString("en")} ${c.clock === "counter" ? "ticks" : "ns"}: CPU ` +
            `${worst.first.cpu} read ${worst.first.value} and was done at counter ${worst.first.counter_after}; CPU ` +
            `${worst.second.cpu} began at ${worst.second.counter_before} and read ${worst.second.value}.`));
    }
}

function skewText(skew) {
    return skew ? `${skew.ticks_min.toLocaleString("en")} to ${skew.ticks_max.toLocaleString("en")}` : "–";
}

function fillCpus() {
    fillTable("cpus", ["CPU", "passes", "longest hole", "holes alone", "exchanges", "counter ahead of the first, ticks"],
              data.cpus.map(c => [element("th", {}, String(c.cpu)), c.passes, showNs(c.longest_hole_ns), c.holes, c.exchanges,
                                  skewText(c.skew)]));
}

function ntpText(state) {
    return `${state.unsync ? "unsynchronised" : "synchronised"}, maxerror ${showNs(state.maxerror_us * 1000)}`;
}

function fillNtp() {
    const rows = data.ntp_changes.map(c => [seconds(c.at_ns), ntpText(c.before), ntpText(c.after)]);
    if (rows.length === 0 && data.ntp)
        rows.push(["all the time", ntpText(data.ntp), ""]);
    fillTable("ntp", ["at", "before", "after"], rows);
}

function start() {
    fillHead();
    fillStory();
    fillEvents();
    const series = document.getElementById("series");
    option(series, "", "all clocks");
    Object.keys(data.timeline.less_monotonic_raw_ns).forEach(name => option(series, name, shortName(name)));
    series.addEventListener("change", () => drawTimeline(series.value));
    drawTimeline("");
    drawHoles();
    const event = document.getElementById("event"), clock = document.getElementById("clock");
    data.events.filter(e => e.picture.CLOCK_MONOTONIC_RAW.length > 0)
        .forEach(e => option(event, e.number, `${e.number}, at ${seconds(e.at_ns)}: ${e.reasons.join(", ")}`));
    ["CLOCK_MONOTONIC_RAW", "CLOCK_MONOTONIC"].forEach(name => option(clock, name, shortName(name)));
    const redraw = () => drawSeam(event.value, clock.value);
    event.addEventListener("change", redraw);
    clock.addEventListener("change", redraw);
    redraw();
    fillClocks();
    fillCpus();
    fillNtp();
}

start();
