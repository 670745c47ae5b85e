// Draws the page from the JSON document of `continuo compare` that stands in it. Nothing is computed here that the
// document does not say: sums over scenarios are the document's own `totals`.
"use strict";

const kAll = "";

function share(part, whole) {
    if (part === whole)
        return "every run";
    const percent = 100 * part / whole;
    return percent < 0.1 ? `${part} of ${whole.toLocaleString("en")} runs` : `${percent.toFixed(percent < 10 ? 1 : 0)} % of runs`;
}

/// The cell of a strategy in one scenario, or over all of them.
function cellOf(strategy, scenario) {
    const list = scenario === kAll ? data.totals : data.cells;
    return list.find(c => c.strategy === strategy && (scenario === kAll || c.scenario === scenario));
}

function fillHead() {
    const count = verdict => data.claims.filter(c => c.verdict === verdict).length;
    document.getElementById("summary").textContent =
        `continuo ${data.version}. Seeds ${data.seeds.first} to ${data.seeds.last} of each scenario with each strategy; ` +
        `the same command gives the same run hash, ${data.hash}.`;
    const tiles = [[data.runs.toLocaleString("en"), "simulated runs"], [data.strategies.length, "strategies"],
                   [data.scenarios.length, "scenarios"], [count("reproduced"), "claims reproduced"],
                   [count("not_reproduced"), "claims not reproduced"], [count("undecided"), "not decided by these runs"]];
    fillTiles(tiles);
    document.getElementById("replay").textContent = "continuo sim run FILE --strategy NAME --seeds SEED..SEED";
}

function invariantCell(verdict) {
    if (!verdict || verdict.checked === 0)
        return element("td", {class: "cell none"}, "–");
    if (verdict.broken === 0)
        return element("td", {class: "cell kept"}, "kept");
    const where = `${verdict.scenario}, seed ${verdict.seed}`;
    // What either holds or does not has no size but 1.
    const size = verdict.worst_ns > 1 ? showNs(verdict.worst_ns) : "broken";
    return element("td", {class: "cell broken", title: where}, element("b", {}, size),
                   element("small", {}, share(verdict.broken, verdict.checked)), element("small", {}, where));
}

function drawMatrix(scenario) {
    const shown = data.invariants.filter(i => data.totals.some(t => t.invariants[i.name].checked > 0));
    const head = element("tr", {}, element("th", {}, "strategy"));
    for (const invariant of shown)
        head.append(element("th", {title: invariant.about}, invariant.name.replaceAll("_", " "), element("small", {}, invariant.number)));
    const body = element("tbody", {});
    for (const strategy of data.strategies) {
        const cell = cellOf(strategy.name, scenario);
        const row = element("tr", {}, element("th", {title: strategy.about}, strategy.name));
        for (const invariant of shown)
            row.append(invariantCell(cell && cell.invariants[invariant.name]));
        body.append(row);
    }
    document.getElementById("matrix").replaceChildren(element("thead", {}, head), body);
    const chosen = data.scenarios.find(s => s.name === scenario);
    document.getElementById("scenario-about").textContent = chosen ? chosen.about : "";
}

/// Writes each bar's figure behind it.
const figures = {
    id: "figures",
    afterDatasetsDraw(chart) {
        const {ctx} = chart;
        ctx.save();
        ctx.font = "11px system-ui, 'DejaVu Sans', sans-serif";
        ctx.fillStyle = "#1c2430";
        ctx.textBaseline = "middle";
        chart.getDatasetMeta(1).data.forEach((bar, i) => {
            const value = chart.data.datasets[1].exact[i];
            const text = value === null ? "no run" : showNs(value);
            ctx.fillText(text, Math.max(bar.x, chart.chartArea.left) + 5, bar.y);
        });
        ctx.restore();
    }
};

const kFloor = 0.5;  // where a logarithmic axis starts; 0 is drawn there, and its figure says 0
let charts = [];

function barChart(quantity, scenario) {
    const canvas = element("canvas", {});
    const box = element("div", {class: "canvas", style: `height:${70 + 27 * data.strategies.length}px`}, canvas);
    document.getElementById("bars").append(
        element("div", {class: "chart"}, element("h3", {}, quantity.title), element("p", {class: "soft"}, quantity.about), box));
    const cells = data.strategies.map(s => cellOf(s.name, scenario));
    const pick = key => cells.map(c => c && c.quantities[quantity.name].count > 0 ? c.quantities[quantity.name][key] : null);
    const drawn = values => values.map(v => v === null ? null : Math.max(v, kFloor));
    const medians = pick("median_ns");
    const worst = pick("max_ns");
    charts.push(new Chart(canvas, {
        type: "bar",
        data: {
            labels: data.strategies.map(s => s.name),
            datasets: [
                {label: "median", data: drawn(medians), exact: medians, backgroundColor: "#1f4e79", barPercentage: 0.45, grouped: false, order: 1},
                {label: "worst", data: drawn(worst), exact: worst, backgroundColor: "#9dbcd8", barPercentage: 0.85, grouped: false, order: 2}
            ]
        },
        plugins: [figures],
        options: {
            indexAxis: "y", responsive: true, maintainAspectRatio: false, animation: false,
            layout: {padding: {right: 64}},
            scales: {
                x: {type: "logarithmic", min: kFloor, ticks: {callback: tick, maxRotation: 0, autoSkip: false}, grid: {color: gridColour}},
                y: {ticks: {autoSkip: false}, grid: {display: false}}
            },
            plugins: {
                legend: {position: "top", align: "end", labels: {boxWidth: 12}},
                tooltip: {callbacks: {label: item => describe(item, cells[item.dataIndex], quantity)}}
            }
        }
    }));
}

/// Every third power of ten has a mark.
function tick(value) {
    const power = Math.round(Math.log10(value));
    return Math.abs(value / 10 ** power - 1) < 1e-9 && power % 3 === 0 ? showNs(10 ** power) : "";
}

/// A line where a mark is, and none between.
function gridColour(context) {
    return context.tick && tick(context.tick.value) ? "#dfe4ea" : "transparent";
}

function describe(item, cell, quantity) {
    const exact = showNs(item.dataset.exact[item.dataIndex]);
    if (item.datasetIndex === 0)
        return `median ${exact}`;
    const worst = cell.quantities[quantity.name];
    return `worst ${exact}: ${worst.scenario}, seed ${worst.seed}`;
}

function drawBars(scenario) {
    charts.forEach(chart => chart.destroy());
    charts = [];
    document.getElementById("bars").replaceChildren();
    for (const quantity of data.quantities.filter(q => q.shown))
        barChart(quantity, scenario);
}

let spread = null;

function drawSpread(name) {
    const quantity = data.quantities.find(m => m.name === name);
    if (spread)
        spread.destroy();
    const line = (strategy, i) => {
        const total = cellOf(strategy.name, kAll).quantities[name];
        let sum = 0;
        const points = total.buckets.map(([edge, count]) => ({x: Math.max(edge, kFloor), y: 100 * (sum += count) / total.count}));
        if (points.length > 0)
            points.push({x: 1e14, y: 100});
        const colour = kColours[i % kColours.length];
        return {label: strategy.name, data: points, stepped: "before", borderColor: colour, backgroundColor: colour,
                borderWidth: 2, borderDash: i >= 8 ? [6, 3] : [], pointRadius: 0, pointHitRadius: 6};
    };
    spread = new Chart(document.getElementById("spread"), {
        type: "line",
        data: {datasets: data.strategies.map(line)},
        options: {
            responsive: true, maintainAspectRatio: false, animation: false, parsing: false,
            interaction: {mode: "nearest", intersect: false},
            scales: {
                x: {type: "logarithmic", min: kFloor, max: 1e14, title: {display: true, text: `${quantity.title} at most`},
                    ticks: {callback: tick, maxRotation: 0, autoSkip: false}, grid: {color: gridColour}},
                y: {min: 0, max: 100, title: {display: true, text: "share of runs, %"}, grid: {color: "#eceff3"}}
            },
            plugins: {
                legend: {position: "right", labels: {boxWidth: 18}},
                tooltip: {callbacks: {title: () => "", label: item =>
                    `${item.dataset.label}: ${item.parsed.y.toFixed(1)} % of runs at most ${showNs(Math.round(item.parsed.x))}`}}
            }
        }
    });
}

const kVerdicts = {reproduced: "reproduced", not_reproduced: "not reproduced", undecided: "not decided"};

function drawClaims(verdict) {
    const head = element("tr", {});
    for (const title of ["thread", "claim", "verdict", "figures", "how it is decided"])
        head.append(element("th", {}, title));
    const body = element("tbody", {});
    for (const claim of data.claims.filter(c => verdict === kAll || c.verdict === verdict)) {
        const figure = element("td", {}, claim.figures);
        if (claim.why)
            figure.append(element("small", {}, claim.why));
        body.append(element("tr", {id: claim.name},
            element("th", {}, claim.thread),
            element("td", {}, claim.claim, element("small", {}, claim.who)),
            element("td", {}, element("span", {class: `badge ${claim.verdict}`}, kVerdicts[claim.verdict])),
            figure, element("td", {}, claim.decided_by)));
    }
    document.getElementById("claims").replaceChildren(element("thead", {}, head), body);
}

function drawList(id, list) {
    const body = element("tbody", {});
    for (const item of list)
        body.append(element("tr", {}, element("th", {}, item.name), element("td", {}, item.thread || ""),
                            element("td", {}, item.about)));
    document.getElementById(id).replaceChildren(body);
}

function start() {
    fillHead();
    const scenario = document.getElementById("scenario");
    option(scenario, kAll, "all of them");
    data.scenarios.forEach(s => option(scenario, s.name, s.name));
    const quantity = document.getElementById("quantity");
    data.quantities.forEach(q => option(quantity, q.name, q.title));
    quantity.value = "lost_time";
    const verdict = document.getElementById("verdict");
    option(verdict, kAll, "all claims");
    Object.entries(kVerdicts).forEach(([name, text]) => option(verdict, name, text));
    const redraw = () => { drawMatrix(scenario.value); drawBars(scenario.value); };
    scenario.addEventListener("change", redraw);
    quantity.addEventListener("change", () => drawSpread(quantity.value));
    verdict.addEventListener("change", () => drawClaims(verdict.value));
    redraw();
    drawSpread(quantity.value);
    drawClaims(kAll);
    drawList("scenarios", data.scenarios);
    drawList("strategies", data.strategies);
}

start();
