// What the pages share: the document that stands in the page, elements, lengths of time.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const kColours = ["#1f4e79", "#c0504d", "#2e8b57", "#8064a2", "#e08e0b", "#17a2b8", "#7f6000", "#d6589f", "#5b6675",
                  "#6aa84f", "#a61c00", "#3d5afe", "#00796b", "#8d6e63", "#9e9d24", "#ad1457"];

function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {}))
        made.setAttribute(name, value);
    for (const child of children)
        made.append(child);
    return made;
}

/// A length of time with the unit that suits it, to 3 digits.
function showNs(ns) {
    const units = [[31556952e9, "y"], [86400e9, "d"], [3600e9, "h"], [1e9, "s"], [1e6, "ms"], [1e3, "µs"]];
    for (const [size, name] of units)
        if (Math.abs(ns) >= size)
            return `${Number((ns / size).toPrecision(3))} ${name}`;
    return `${ns} ns`;
}

function option(select, value, text) {
    select.append(element("option", {value}, text));
}

function fillTiles(tiles) {
    for (const [number, text] of tiles)
        document.getElementById("tiles").append(
            element("div", {class: "tile"}, element("b", {}, String(number)), element("span", {}, text)));
}

/// A table of texts and elements; numbers stand to the right.
function fillTable(id, titles, rows) {
    const head = element("tr", {});
    for (const title of titles)
        head.append(element("th", {}, title));
    const body = element("tbody", {});
    for (const cells of rows) {
        const row = element("tr", {});
        for (const cell of cells)
            row.append(cell instanceof Node ? cell : element("td", typeof cell === "number" ? {class: "number"} : {},
                                                             typeof cell === "number" ? cell.toLocaleString("en") : cell));
        body.append(row);
    }
    document.getElementById(id).replaceChildren(element("thead", {}, head), body);
}

Chart.defaults.font.family = "system-ui, 'DejaVu Sans', sans-serif";
