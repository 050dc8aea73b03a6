"use strict";
// Draws each chart again so that it can be zoomed and read point by point: with the mouse, by
// touch, or with the arrow keys. The picture that the server drew stays for print and for whoever
// has no scripts.
(() => {
  if (!window.uPlot) return;
  const MICRO = 1e6;
  const DASHES = [[], [8, 5], [2, 5]];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = new Map();

  function compact(count) {
    const [size, suffix] = [[1e15, " P"], [1e12, " T"], [1e9, " B"], [1e6, " M"], [1e3, " k"], [1, ""]].find(([n]) => count >= n) || [1, ""];
    return `${Number((count / size).toPrecision(4))}${suffix}`;
  }

  // In UTC, days first: a time of day only where the step is shorter than a day.
  function moments(_, at, __, ___, step) {
    return at.map((seconds) => {
      const [day, time] = new Date(seconds * 1000).toISOString().split("T");
      const date = new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
      return step >= 86400 || time.startsWith("00:00") ? (step >= 31536000 ? day.slice(0, 7) : date) : time.slice(0, 5);
    });
  }

  const UNITS = {
    micronats: { of: (v) => v / MICRO, say: (v) => v.toFixed(4) },
    microcredits: { of: (v) => v / MICRO, say: (v) => v.toLocaleString("en", { maximumSignificantDigits: 4 }) },
    permille: { of: (v) => v / 10, say: (v) => `${v.toFixed(1)} %` },
    members: { of: (v) => v, say: (v) => v.toLocaleString("en") },
    tokens: { of: (v) => v, say: compact },
    round: { of: (v) => v, say: (v) => v.toLocaleString("en") },
    unix_seconds: { of: (v) => v, say: (v) => `${new Date(v * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC` },
  };

  function colours() {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  }

  function columns(series) {
    const y = UNITS[series.y_unit].of;
    const own = series.lines.map((line) => line.values.map(y));
    if (series.kind !== "stack") return { own, drawn: own };
    const drawn = [];
    own.forEach((values, at) => drawn.push(values.map((v, i) => v + (at ? drawn[at - 1][i] : 0))));
    return { own, drawn };
  }

  function options(series, own, box) {
    const colour = colours();
    const x = UNITS[series.x_unit];
    const y = UNITS[series.y_unit];
    const font = `12px ${colour("sans") || "sans-serif"}`;
    const axis = { stroke: colour("soft"), font, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    const stacked = series.kind === "stack";
    const lines = series.lines.map((line, at) => ({
      label: stacked ? `${at + 1} ${line.label}` : line.label,
      stroke: stacked ? colour("card") : colour(`tone-${line.tone}`),
      width: stacked ? 1 : 2.2,
      dash: stacked || series.lines.length === 1 ? [] : DASHES[at],
      fill: stacked ? colour(`tone-${line.tone}`) : series.kind === "bars" ? colour(`tone-${line.tone}`) : series.lines.length === 1 ? colour("tone-area") : undefined,
      paths: series.kind === "bars" ? uPlot.paths.bars({ size: [0.72, 48] }) : undefined,
      points: { fill: colour("card"), show: !stacked && series.kind === "line" && series.x.length <= 60 && series.lines.length === 1 },
      value: (_, __, at_, i) => (i === null ? "–" : y.say(own[order(series, at_ - 1)][i])),
    }));
    return {
      ...box,
      title: series.title,
      tzDate: (s) => uPlot.tzDate(new Date(s * 1000), "Etc/UTC"),
      scales: {
        x: { time: series.x_unit === "unix_seconds", range: series.kind === "bars" ? (_, low, high) => [low - 0.6, high + 0.6] : undefined },
        y: { range: series.y_unit === "micronats" ? undefined : (_, __, high) => [0, high * 1.06 || 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, ...(series.x_unit === "tokens" ? { values: (_, at) => at.map(compact) } : series.x_unit === "unix_seconds" ? { values: moments } : {}) },
        { ...axis, size: 62, ...(series.y_unit === "permille" ? { values: (_, at) => at.map((v) => `${v} %`) } : {}) },
      ],
      series: [{ label: series.x_label, value: (_, v) => (v === null ? "–" : x.say(v)) }, ...(stacked ? lines.reverse() : lines)],
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      legend: { live: true },
      hooks: {
        ready: [(plot) => plot.setLegend({ idx: series.x.length - 1 })],
        draw: [(plot) => (stacked ? drawNumbers(plot, series, colour, font) : drawMarks(plot, series, colour("soft"), font))],
      },
    };
  }

  // A stack is painted from its top sum down to its first line.
  function order(series, at) {
    return series.kind === "stack" ? series.lines.length - 1 - at : at;
  }

  function drawMarks(plot, series, stroke, font) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = stroke;
    ctx.lineWidth = ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.font = font.replace("12px", `${11 * ratio}px`);
    series.marks.forEach((mark, at) => {
      const x = plot.valToPos(mark.x, "x", true);
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) return;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const end = x > bbox.left + bbox.width / 2;
      ctx.textAlign = end ? "right" : "left";
      ctx.fillText(mark.label, x + (end ? -5 : 5) * ratio, bbox.top + (11 + 14 * (at % 3)) * ratio);
    });
    ctx.restore();
  }

  // A band is known by its number in the legend, not by its colour alone.
  function drawNumbers(plot, series, colour, font) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    const right = bbox.left + bbox.width - 14 * ratio;
    const at = plot.valToIdx(plot.posToVal(right / ratio - bbox.left / ratio, "x"));
    ctx.save();
    ctx.font = font.replace("12px", `${11 * ratio}px`);
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    let below = 0;
    series.lines.forEach((line, place) => {
      const above = below + UNITS[series.y_unit].of(line.values[at]);
      const [top, bottom] = [above, below].map((value) => plot.valToPos(value, "y", true));
      if (bottom - top >= 13 * ratio) {
        ctx.fillStyle = inkOn(colour(`tone-${line.tone}`));
        ctx.fillText(String(place + 1), right, (top + bottom) / 2);
      }
      below = above;
    });
    ctx.restore();
  }

  function inkOn(hex) {
    const [r, g, b] = [1, 3, 5].map((at) => (parseInt(hex.slice(at, at + 2), 16) / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#1d1915" : "#ffffff";
  }

  function sizeOf(holder) {
    const width = Math.max(240, Math.floor(holder.clientWidth));
    return { width, height: width < 520 ? 260 : 340 };
  }

  function build(figure, series) {
    const known = plots.get(figure);
    const holder = known ? known.holder : addHolder(figure);
    if (known) known.plot.destroy();
    const { own, drawn } = columns(series);
    const data = [series.x, ...(series.kind === "stack" ? [...drawn].reverse() : drawn)];
    const plot = new uPlot(options(series, own, sizeOf(holder)), data, holder);
    plot.root.querySelector(".u-title").dataset.unit = series.y_label;
    plots.set(figure, { plot, holder, series });
    figure.classList.add("drawn");
  }

  function addHolder(figure) {
    const holder = document.createElement("div");
    holder.className = "plot";
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `Interactive chart: ${figure.querySelector("img").alt} Left and right arrow keys read its points.`);
    const spoken = document.createElement("p");
    spoken.className = "visually-hidden";
    spoken.setAttribute("aria-live", "polite");
    const tools = document.createElement("div");
    tools.className = "plot-tools";
    for (const [name, action] of [["Zoom in", 0.5], ["Zoom out", 2], ["Show all", Infinity]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => zoom(plots.get(figure).plot, action));
      tools.append(button);
    }
    figure.querySelector("picture").after(holder, tools, spoken);
    holder.addEventListener("keydown", (event) => walk(event, plots.get(figure), spoken));
    new ResizeObserver(() => {
      const entry = plots.get(figure);
      if (entry && holder.clientWidth > 0 && entry.plot.width !== sizeOf(holder).width) entry.plot.setSize(sizeOf(holder));
    }).observe(holder);
    return holder;
  }

  function zoom(plot, factor) {
    const x = plot.data[0];
    const [first, last] = [x[0], x[x.length - 1]];
    const { min, max } = plot.scales.x;
    const centre = (min + max) / 2;
    const half = Math.min((max - min) * factor, last - first) / 2;
    const low = Math.max(first, Math.min(centre - half, last - 2 * half));
    if (half > 0) plot.setScale("x", { min: low, max: low + 2 * half });
  }

  function walk(event, { plot, series }, spoken) {
    const last = series.x.length - 1;
    const now = plot.cursor.idx ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(last, to));
    const top = Math.max(...plot.data.slice(1).map((column) => column[at]));
    plot.setCursor({ left: plot.valToPos(series.x[at], "x"), top: plot.valToPos(top, "y") });
    const y = UNITS[series.y_unit];
    const values = series.lines.map((line) => `${line.label} ${y.say(y.of(line.values[at]))}`);
    spoken.textContent = `${series.x_label} ${UNITS[series.x_unit].say(series.x[at])}: ${values.join(", ")}`;
  }

  async function load(figure) {
    const answer = await fetch(figure.dataset.series).catch(() => null);
    if (!answer?.ok) return; // the picture stays
    const series = await answer.json();
    const known = plots.get(figure);
    if (series.x.length === 0 || (known && JSON.stringify(known.series) === JSON.stringify(series))) return;
    build(figure, series);
  }

  const figures = [...document.querySelectorAll("figure[data-series]:not([data-kind=progress])")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      watcher.unobserve(entry.target);
      load(entry.target);
    }
  }, { rootMargin: "200px" });
  figures.forEach((figure) => watcher.observe(figure));
  document.addEventListener("barnraise:changed", () => [...plots.keys()].forEach(load));
  dark.addEventListener("change", () => plots.forEach(({ series }, figure) => build(figure, series)));
})();
