"use strict";
// Draws the charts of a report as SVG from the data in the page. All charts share one time axis, and the faults are on it.
(() => {
  const { series, faults, phases } = JSON.parse(document.getElementById("data").textContent);
  const WIDTH = 1032, HEIGHT = 190, LEFT = 52, RIGHT = 18, TOP = 22, BOTTOM = 22;
  const at = series.at_s;
  const first = at[0], last = Math.max(at[at.length - 1], first + 1);
  const toX = (s) => LEFT + ((s - first) / (last - first)) * (WIDTH - LEFT - RIGHT);

  const make = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };
  const write = (parent, x, y, text, attributes = {}) => {
    make("text", { x, y, ...attributes }, parent).textContent = text;
  };
  const short = (value) => (value >= 1000 ? `${+(value / 1000).toPrecision(3)}k` : String(+value.toPrecision(3)));

  // Round steps for an axis from zero, or by powers of ten.
  const linearTicks = (greatest) => {
    const rough = greatest / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    return Array.from({ length: Math.ceil(greatest / step) + 1 }, (_, n) => n * step);
  };
  const logTicks = (least, greatest) => {
    const from = Math.floor(Math.log10(least)), to = Math.max(Math.ceil(Math.log10(greatest)), from + 1);
    return Array.from({ length: to - from + 1 }, (_, n) => 10 ** (from + n));
  };

  const drawFrame = (svg, ticks, toY) => {
    for (const tick of ticks) {
      const y = toY(tick);
      make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" }, svg);
      write(svg, LEFT - 8, y + 4, short(tick), { "text-anchor": "end" });
    }
    for (const tick of linearTicks(last - first)) {
      if (tick <= last - first) write(svg, toX(first + tick), HEIGHT - 6, `${short(tick)} s`, { "text-anchor": "middle" });
    }
  };

  const reach = (fault) => {
    const x = Math.max(toX(fault.began_s), LEFT);
    return [x, Math.max(Math.min(toX(fault.ended_s ?? last), WIDTH - RIGHT), x + 2)];
  };

  // Under the figures, so that these keep their colours.
  const shadeFaults = (svg) => {
    for (const fault of faults) {
      const [x, end] = reach(fault);
      make("rect", { x, y: TOP, width: end - x, height: HEIGHT - BOTTOM - TOP, class: "fault" }, svg);
    }
  };

  // Over them, so that they can be read.
  const nameFaults = (svg) => {
    const bottom = HEIGHT - BOTTOM, ends = [];
    for (const fault of faults) {
      const [x, end] = reach(fault);
      for (const edge of [x, end]) make("line", { x1: edge, x2: edge, y1: TOP, y2: bottom, class: "fault-edge" }, svg);
      // Names that would run into each other take the next line.
      const row = [0, 1].find((n) => (ends[n] ?? 0) <= x) ?? 0;
      ends[row] = x + fault.name.length * 6.4 + 8;
      write(svg, x + 3, TOP - 4 - row * 11, fault.name, { class: "fault-name" });
    }
    for (const phase of phases.length > 1 ? phases : []) {
      const x = Math.max(toX(phase.began_s), LEFT);
      make("line", { x1: x, x2: x, y1: TOP, y2: bottom, class: "phase-edge" }, svg);
      write(svg, x + 3, TOP - 4, phase.label);
    }
  };

  const drawLine = (svg, values, toY, color) => {
    let path = "", drawn = false;
    values.forEach((value, n) => {
      if (value === null) { drawn = false; return; }
      // The empty step makes a dot of a second that has no neighbours.
      path += `${drawn ? "L" : "M"}${toX(at[n]).toFixed(1)} ${toY(value).toFixed(1)}${drawn ? "" : "h0"}`;
      drawn = true;
    });
    make("path", { d: path, class: "series", style: `stroke: var(${color})` }, svg);
  };

  const drawArea = (svg, low, high, toY, color) => {
    const forth = at.map((s, n) => `${toX(s).toFixed(1)} ${toY(high[n]).toFixed(1)}`);
    const back = at.map((s, n) => `${toX(s).toFixed(1)} ${toY(low[n]).toFixed(1)}`).reverse();
    make("path", { d: `M${forth.join("L")}L${back.join("L")}Z`, class: "area", style: `fill: var(${color})` }, svg);
  };

  // lines: [{name, values}]. Stacked ones are drawn as areas on top of each other.
  const drawChart = (title, lines, { log = false, stacked = false, unit = "" } = {}) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    lines.forEach((line, n) => {
      const key = document.createElement("span");
      key.className = "key";
      key.style.setProperty("--c", `var(--c${n % 6})`);
      key.textContent = line.name;
      caption.append(key);
    });
    figure.append(caption);
    const tops = stacked ? at.map((_, n) => lines.reduce((sum, line) => sum + (line.values[n] ?? 0), 0)) : lines.flatMap((line) => line.values);
    const shown = tops.filter((value) => value !== null && (!log || value > 0));
    const greatest = Math.max(...shown, 1);
    const ticks = log ? logTicks(Math.min(...shown, greatest), greatest) : linearTicks(greatest);
    const floor = ticks[0], ceiling = ticks[ticks.length - 1];
    const toY = (value) => {
      const part = log ? Math.log10(Math.max(value, floor) / floor) / Math.log10(ceiling / floor) : value / ceiling;
      return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM);
    };
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
    shadeFaults(svg);
    drawFrame(svg, ticks, toY);
    let low = at.map(() => 0);
    lines.forEach((line, n) => {
      if (!stacked) { drawLine(svg, line.values, toY, `--c${n % 6}`); return; }
      const high = low.map((value, k) => value + (line.values[k] ?? 0));
      drawArea(svg, low, high, toY, `--c${n % 6}`);
      low = high;
    });
    nameFaults(svg);
    figure.append(svg);
    explain(figure, svg, lines, unit);
    document.getElementById("charts").append(figure);
  };

  // What the values are under the pointer.
  const explain = (figure, svg, lines, unit) => {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    const cursor = make("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" }, svg);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      const n = Math.min(Math.max(Math.round(((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first)), 0), at.length - 1);
      const told = lines.map((line) => `${line.name} ${line.values[n] ?? "-"}${line.values[n] === null ? "" : unit}`);
      tip.textContent = [`${at[n] - first} s`, ...told].join("  ·  ");
      tip.hidden = false;
      const left = ((toX(at[n]) / WIDTH) * box.width) | 0;
      tip.style.left = `${Math.max(0, Math.min(left + 12, box.width - tip.offsetWidth))}px`;
      tip.style.top = "30px";
      for (const [key, value] of [["x1", toX(at[n])], ["x2", toX(at[n])], ["visibility", "visible"]]) cursor.setAttribute(key, value);
    });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
  };

  if (!at.length) {
    document.getElementById("charts").textContent = "No requests were made.";
    return;
  }
  const named = (group) => Object.entries(group).map(([name, values]) => ({ name, values }));
  drawChart("Latency from the intended start, ms (logarithmic)", [
    { name: "p50", values: series.p50_ms }, { name: "p95", values: series.p95_ms }, { name: "p99", values: series.p99_ms },
    { name: "p99 closed loop", values: series.closed_p99_ms },
  ], { log: true, unit: " ms" });
  drawChart("Requests a second", [{ name: "reads", values: series.reads }, { name: "commands", values: series.commands }], { stacked: true });
  drawChart("Errors a second", [{ name: "errors", values: series.errors }]);
  drawChart("Replica lag, ms", named(series.lag_ms), { unit: " ms" });
  drawChart("Where reads went, a second", named(series.nodes), { stacked: true });
})();
