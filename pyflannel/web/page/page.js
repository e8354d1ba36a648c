// The page: takes what the server sends and shows it. Texts become text nodes, nothing else.

const SVG = "http://www.w3.org/2000/svg";
const STATES = ["up", "small-only", "down", "failing", "ignored", "unknown"];
const SAID = {
  up: "answers",
  "small-only": "large packets do not pass",
  down: "does not answer",
  failing: "could not be programmed",
  ignored: "left out",
  unknown: "has not answered yet",
};
// Of a link, by the order in which the ways were met: the backend's own is a whole line.
const DASHES = ["", "7 4", "2 4", "9 3 2 3"];
const SIGNS = {
  up: "",
  "small-only": "M-3.2 2.6 0 -3.4 3.2 2.6Z",
  down: "M-3-3 3 3M3-3-3 3",
  failing: "M0-3.5V.6M0 3V3.2",
  ignored: "M-3 0H3",
  unknown: "",
};
const LABEL_PX = 96; // of 15 characters, which is 10.244.100.0/24
const LABEL = 15;
const ROW_PX = 12;

const $ = (id) => document.getElementById(id);
let state = null; // what came last
let chosen = ""; // the peer whose numbers are shown
let current = ""; // the peer on the map that Tab reaches
let source = null;

function make(name, attributes = {}, ...inside) {
  const element = document.createElement(name);
  return fill(element, attributes, inside);
}

function draw(name, attributes = {}, ...inside) {
  const element = document.createElementNS(SVG, name);
  return fill(element, attributes, inside);
}

function fill(element, attributes, inside) {
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  element.append(...inside.map((each) => (each instanceof Node ? each : String(each))));
  return element;
}

function say(element, text) {
  // Only what is new: a screen reader reads again what is written again.
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

// Words.

function known(name) {
  return STATES.includes(name) ? name : "unknown";
}

function duration(seconds) {
  let rest = Math.max(0, Math.floor(seconds));
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  for (const [position, [size, unit]] of units.entries()) {
    if (rest >= size || size === 1) {
      const count = Math.floor(rest / size);
      rest %= size;
      const [smaller, name] = units[position + 1] ?? [Infinity, ""];
      const more = Math.floor(rest / smaller);
      return `${count} ${unit}${more ? ` ${more} ${name}` : ""}`;
    }
  }
  return "";
}

function clock(at) {
  const there = new Date(at * 1000);
  const time = there.toTimeString().slice(0, 8);
  const same = there.toDateString() === new Date().toDateString();
  return same ? time : `${there.getFullYear()}-${pad(there.getMonth() + 1)}-${pad(there.getDate())} ${time}`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}

function since(at, now) {
  return at === null ? "" : `since ${clock(at)} (${duration(now - at)})`;
}

function millis(seconds) {
  if (seconds === null) return "";
  const value = seconds * 1000;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
}

function bytes(count, suffix = "") {
  if (count === null) return "";
  let value = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 999.5) return `${value < 10 && unit !== "B" ? value.toFixed(1) : value.toFixed(0)} ${unit}${suffix}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB${suffix}`;
}

function percent(share) {
  return share === null ? "" : `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

function short(text) {
  return text.length > LABEL ? `${text.slice(0, LABEL - 1)}…` : text;
}

function traffic(peer) {
  return peer.rate_in === null && peer.rate_out === null ? null : (peer.rate_in ?? 0) + (peer.rate_out ?? 0);
}

function spoken(peer) {
  const parts = [peer.host, peer.subnet, SAID[peer.state] ?? peer.state, millis(peer.rtt_s)];
  return parts.filter(Boolean).join(", ");
}

// The head.

function showHead(view) {
  const { silence, nodes, node } = state;
  const word = silence ? "no answer" : view ? view.state : "…";
  say($("verdict"), word);
  $("verdict").className = word.replace(" ", "-");
  say($("name"), node);
  document.title = `${node}: ${word}`;
  const own = view?.own;
  say($("about"), own ? [own.subnet, own.backend, own.interface && `on ${own.interface}`, view.store].filter(Boolean).join(" · ") : "");
  say($("foot"), view ? `pyflanneld ${view.version}: ${view.phase}. As of ${clock(view.now)}.` : "");
  document.body.classList.toggle("stale", Boolean(silence));
  $("choice").hidden = nodes.length < 2;
  const options = nodes.map((each) => `${each.name}${each.state && each.state !== "fine" ? ` (${each.state})` : ""}`);
  const select = $("node");
  if (select.options.length !== nodes.length) {
    select.replaceChildren(...nodes.map((each) => make("option", { value: each.name })));
  }
  options.forEach((text, at) => say(select.options[at], text));
  select.value = node;
}

function showSilence(text) {
  $("silence").hidden = !text;
  say($("silence"), text);
}

// Problems.

let saidProblems = "";

function showProblems(view) {
  const without = JSON.stringify([view.problems, view.more_problems]);
  if (without === saidProblems) return;
  saidProblems = without;
  const list = view.problems.map((each) => {
    const article = make("article", { class: `problem ${["error", "warning", "info"].includes(each.severity) ? each.severity : "info"}` });
    article.append(make("h3", {}, `${each.severity}: ${each.subject} (${each.code})`));
    if (each.since !== null) article.append(make("p", { class: "since" }, `since ${clock(each.since)}`));
    article.append(make("p", {}, each.text));
    if (each.remedy) article.append(make("p", { class: "remedy" }, each.remedy));
    return article;
  });
  if (!list.length) list.push(make("p", {}, "None."));
  if (view.more_problems) list.push(make("p", {}, `and ${view.more_problems} more: pyflannel status`));
  $("problems").replaceChildren(...list);
}

// The map. This node in the middle, the others on the underlay around it.

// Labels stand beside the dots of few, along the spokes of many, above and below the dots where it is
// narrow, and nowhere where there is no room: the table has them.
function layout(width, count) {
  const most = Math.min(width, 680) / 2;
  const beside = most - LABEL_PX - 16;
  const sized = (labels, radius, dot, around) => ({ labels, radius, dot, width, height: 2 * (radius + around) });
  if (beside >= 110 && count <= 12) return sized("beside", Math.min(beside, 230), 9, 36);
  if (count <= 6) return sized("above", Math.min(most - LABEL_PX / 2 - 4, 230), 9, 36);
  const spacing = (radius) => (2 * Math.PI * radius) / count;
  if (beside >= 110 && spacing(Math.min(beside, 230)) >= ROW_PX) return sized("along", Math.min(beside, 230), 5, LABEL_PX + 16);
  const radius = Math.min(most - 14, 300);
  return sized("", radius, Math.max(2.5, Math.min(9, spacing(radius) * 0.36)), 14);
}

function place(at, count, radius) {
  const angle = -Math.PI / 2 + (2 * Math.PI * (at + (count === 2 ? 0.25 : 0))) / count;
  return { angle, x: Math.cos(angle) * radius, y: Math.sin(angle) * radius };
}

let map = null; // { key, peers: Map of id to its elements }

function showMap(view) {
  const width = Math.max(200, Math.floor($("map-place").clientWidth));
  const key = JSON.stringify([width, view.peers.map((peer) => peer.id)]);
  if (map?.key !== key) buildMap(view, width, key);
  const ways = waysOf(view);
  const thin = view.peers.length > 40 ? 0.5 : 1;
  for (const peer of view.peers) {
    const { link, group, title, label } = map.peers.get(peer.id);
    const rate = traffic(peer);
    const name = known(peer.state);
    link.setAttribute("class", `link ${name}`);
    link.setAttribute("stroke-width", (peer.troubled ? 1 : thin) * (1.5 + (rate === null ? 0 : Math.min(6, Math.log10(1 + rate / 1000)))));
    link.setAttribute("stroke-dasharray", DASHES[ways.indexOf(peer.way)] ?? DASHES.at(-1));
    group.setAttribute("class", `peer ${name}${peer.id === chosen ? " chosen" : ""}`);
    group.setAttribute("aria-label", spoken(peer));
    group.setAttribute("aria-pressed", String(peer.id === chosen));
    group.querySelector(".sign").setAttribute("d", SIGNS[name]);
    say(title, spoken(peer));
    say(label, map.labels ? short(peer.host || peer.subnet) : "");
  }
  say(map.own, short(view.own.subnet || "this node"));
  const counts = STATES.filter((name) => view.counts[name]).map((name) => `${view.counts[name]} ${name}`);
  const total = view.peers.length + view.more_peers;
  say($("summary"), total ? `${total} other node${total > 1 ? "s" : ""}: ${counts.join(", ")}` : "No other node has a lease.");
  showLegend(view, ways);
}

function waysOf(view) {
  return [...new Set(view.peers.map((peer) => peer.way))];
}

function buildMap(view, width, key) {
  const focused = document.activeElement?.closest?.("#map .peer")?.dataset.id;
  const count = view.peers.length;
  const { radius, labels, dot, height } = layout(width, count);
  const svg = draw("svg", {
    id: "map", role: "group", width, height, viewBox: `${-width / 2} ${-height / 2} ${width} ${height}`,
    "aria-label": "Map of the nodes as this one sees them",
  });
  svg.append(draw("circle", { class: "underlay", r: radius }));
  const links = draw("g", { "aria-hidden": "true" });
  svg.append(links);
  const peers = new Map();
  view.peers.forEach((peer, at) => {
    const { angle, x, y } = place(at, count, radius);
    const link = draw("line", { x1: 0, y1: 0, x2: x.toFixed(1), y2: y.toFixed(1) });
    links.append(link);
    const label = draw("text", { beside, above, along, "": above }[labels](angle, dot));
    const title = draw("title");
    const group = draw("g", { role: "button", tabindex: "-1", transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` },
      title, draw("circle", { class: "ring", r: dot + 4 }), draw("circle", { class: "dot", r: dot }),
      draw("path", { class: "sign", transform: `scale(${(dot / 7).toFixed(2)})` }), label);
    group.dataset.id = peer.id;
    group.addEventListener("click", () => choose(peer.id));
    peers.set(peer.id, { link, group, title, label });
    svg.append(group);
  });
  const own = draw("text", { y: 30, "text-anchor": "middle" });
  svg.append(draw("g", { class: "self" }, draw("title", {}, "this node"), draw("circle", { r: count > 40 ? 9 : 13 }),
    draw("rect", { class: "back", x: -46, y: 18, width: 92, height: 17, rx: 4 }), own));
  svg.addEventListener("keydown", onMapKey);
  $("map-place").replaceChildren(svg);
  map = { key, peers, own, labels };
  if (!peers.has(current)) current = view.peers[0]?.id ?? "";
  peers.get(current)?.group.setAttribute("tabindex", "0");
  if (focused && peers.has(focused)) peers.get(focused).group.focus();
}

function beside(angle, dot) {
  const x = Math.cos(angle);
  if (Math.abs(x) < 0.35) return above(angle, dot);
  return { x: Math.sign(x) * (dot + 7), y: 4, "text-anchor": x > 0 ? "start" : "end" };
}

function above(angle, dot) {
  return { x: 0, y: Math.sin(angle) < 0.01 ? -(dot + 8) : dot + 18, "text-anchor": "middle" };
}

function along(angle, dot) {
  const left = Math.cos(angle) < -0.01;
  const degrees = (angle * 180) / Math.PI + (left ? 180 : 0);
  return { x: left ? -(dot + 6) : dot + 6, y: 4, "text-anchor": left ? "end" : "start", transform: `rotate(${degrees.toFixed(1)})` };
}

function onMapKey(event) {
  const ids = [...map.peers.keys()];
  const at = ids.indexOf(event.target.closest?.(".peer")?.dataset.id);
  if (at < 0) return;
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  let next = at;
  if (event.key === "Enter" || event.key === " ") choose(ids[at]);
  else if (event.key in steps) next = (at + steps[event.key] + ids.length) % ids.length;
  else if (event.key === "Home") next = 0;
  else if (event.key === "End") next = ids.length - 1;
  else return;
  event.preventDefault();
  map.peers.get(current)?.group.setAttribute("tabindex", "-1");
  current = ids[next];
  map.peers.get(current).group.setAttribute("tabindex", "0");
  if (next !== at) map.peers.get(current).group.focus();
}

let saidLegend = "";

function showLegend(view, ways) {
  const names = STATES.filter((name) => view.peers.some((peer) => known(peer.state) === name));
  const measured = view.peers.some((peer) => traffic(peer) !== null);
  const text = JSON.stringify([names, ways, measured, view.own.interface]);
  if (text === saidLegend) return;
  saidLegend = text;
  const sample = (...inside) => draw("svg", { width: 26, height: 18, viewBox: "-13 -9 26 18", "aria-hidden": "true" }, ...inside);
  const items = names.map((name) => make("li", { class: name }, sample(draw("circle", { class: "dot", r: 7 }), draw("path", { class: "sign", d: SIGNS[name] })), `${name}: ${SAID[name]}`));
  ways.slice(0, DASHES.length).forEach((way, at) => {
    items.push(make("li", { class: "unknown" }, sample(draw("path", { class: "sign", d: "M-12 0H12", "stroke-dasharray": DASHES[at] })), `by ${way || "nothing known"}`));
  });
  if (measured) items.push(make("li", { class: "unknown" }, sample(draw("path", { class: "sign", d: "M-12-4H12" }), draw("path", { class: "sign wide", d: "M-12 4H12" })), "wider: more traffic"));
  if (view.own.interface) items.push(make("li", { class: "unknown" }, sample(draw("path", { class: "sign underlay", d: "M-12 0H12" })), `the underlay, ${view.own.interface}`));
  $("legend").replaceChildren(...items);
}

// The table.

const COLUMNS = [
  ["Subnet", "", (peer) => peer.subnet],
  ["State", "", (peer) => peer.state],
  ["Node", "", (peer) => peer.host],
  ["Public IP", "", (peer) => peer.public_ip],
  ["Way", "", (peer) => peer.way],
  ["RTT", "number", (peer) => millis(peer.rtt_s)],
  ["Loss", "number", (peer) => percent(peer.loss)],
  ["In", "number", (peer) => bytes(peer.rate_in, "/s")],
  ["Out", "number", (peer) => bytes(peer.rate_out, "/s")],
  ["Lease", "", () => ""],
];
const rows = new Map();

function showTable(view) {
  if (!$("heads").children.length) {
    $("heads").append(...COLUMNS.map(([title, kind]) => make("th", { scope: "col", class: kind }, title)));
  }
  const { own } = view;
  const lease = own.reservation ? "reserved" : own.expires === null ? "" : `${duration(own.expires - view.now)} left`;
  const us = [own.subnet, own.held === false ? "lease not held" : "", "this node", own.public_ip, own.backend, "", "", "", "", lease];
  const wanted = [rowOf("", us, own.held === false ? "down" : "up")];
  for (const peer of [...view.peers.filter((each) => each.troubled), ...view.peers.filter((each) => !each.troubled)]) {
    wanted.push(rowOf(peer.id, COLUMNS.map(([, , cell]) => cell(peer)), known(peer.state)));
  }
  const kept = new Set(wanted);
  for (const [id, row] of rows) {
    if (!kept.has(row)) {
      row.remove();
      rows.delete(id);
    }
  }
  const focused = document.activeElement;
  wanted.forEach((row, at) => {
    const there = $("rows").children[at];
    if (there !== row) $("rows").insertBefore(row, there ?? null);
  });
  // What is moved loses it.
  if (document.activeElement !== focused && $("rows").contains(focused)) focused.focus({ preventScroll: true });
  // A column without values only takes space.
  COLUMNS.forEach((_, at) => {
    const empty = wanted.every((row) => !row.children[at].textContent);
    for (const row of [$("heads"), ...wanted]) row.children[at].hidden = empty;
  });
  $("more").hidden = !view.more_peers;
  say($("more"), view.more_peers ? `and ${view.more_peers} more: pyflannel peers` : "");
}

function rowOf(id, cells, name) {
  let row = rows.get(id);
  if (!row) {
    const head = make("th", { scope: "row" }, id ? make("button", { type: "button" }) : make("span"));
    if (id) head.firstChild.addEventListener("click", () => choose(id));
    row = make("tr", {}, head, ...COLUMNS.slice(1).map(([title, kind]) => make("td", { class: kind }, ...(title === "State" ? [make("span", { class: "state" })] : []))));
    rows.set(id, row);
  }
  row.className = `${name}${id && id === chosen ? " chosen" : ""}`;
  if (id) row.querySelector("button").setAttribute("aria-pressed", String(id === chosen));
  cells.forEach((text, at) => say(row.children[at].firstElementChild ?? row.children[at], text));
  return row;
}

// One peer.

function choose(id) {
  const opened = id !== chosen;
  chosen = opened ? id : "";
  show();
  if (opened) $("peer-part").scrollIntoView({ block: "nearest" });
}

function showPeer(view) {
  const peer = view.peers.find((each) => each.id === chosen);
  $("peer-part").hidden = !peer;
  if (!peer) return;
  const title = peer.host ? `${peer.host}, ${peer.subnet}` : peer.subnet;
  if ($("peer-title").textContent !== title) {
    say($("peer-title"), title);
    $("charts").replaceChildren();
  }
  const drops = peer.drops === null ? "" : Object.entries(peer.drops).map(([name, count]) => `${count} ${name}`).join(", ") || "none";
  const both = (one, other, suffix) => [bytes(one, suffix) && `${bytes(one, suffix)} in`, bytes(other, suffix) && `${bytes(other, suffix)} out`].filter(Boolean).join(", ");
  const numbers = [
    ["State", [peer.state, since(peer.since, view.now)].filter(Boolean).join(", ")],
    ["Why", peer.reason],
    ["Public IP", peer.public_ip],
    ["Way", peer.way],
    ["Last heard", peer.last_heard === null ? "" : `${duration(view.now - peer.last_heard)} ago`],
    ["Round trip", millis(peer.rtt_s)],
    ["Loss", percent(peer.loss)],
    ["Largest packet", peer.mtu === null ? "" : `${peer.mtu} bytes`],
    ["Traffic now", both(peer.rate_in, peer.rate_out, "/s")],
    ["Traffic in all", both(peer.bytes_in, peer.bytes_out, "")],
    ["Drops", drops],
  ].filter(([, text]) => text);
  $("numbers").replaceChildren(...numbers.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  loadPast(peer.id);
}

async function loadPast(id) {
  const query = new URLSearchParams({ node: state.node, peer: id });
  try {
    const answer = await fetch(`history?${query}`);
    if (answer.ok && id === chosen) showPast((await answer.json()).samples);
  } catch {
    // The connection is gone: the page says so, and asks again.
  }
}

function showPast(samples) {
  if (samples.length < 2) return;
  const [begin, end] = [samples[0][0], samples.at(-1)[0]];
  const stretch = `the last ${duration(end - begin)}`;
  const bad = samples.map((sample, at) => [sample[0], samples[at + 1]?.[0] ?? end, !["up", "unknown"].includes(sample[1])]);
  const charts = [
    ["Round trip", [samples.map((each) => each[2])], millis],
    ["Loss", [samples.map((each) => each[3])], percent],
    ["Traffic in, and out (dashed)", [samples.map((each) => each[4]), samples.map((each) => each[5])], (value) => bytes(value, "/s")],
  ].filter(([, lines]) => lines.some((line) => line.some((value) => value !== null)));
  $("charts").replaceChildren(...charts.map(([title, lines, words]) => chart(title, lines, words, samples.map((each) => each[0]), bad, stretch)));
}

function chart(title, lines, words, times, bad, stretch) {
  const [begin, end] = [times[0], times.at(-1)];
  const values = lines.flat().filter((value) => value !== null);
  const [least, top] = [Math.min(...values), Math.max(...values)];
  const across = (at) => (((at - begin) / (end - begin)) * 300).toFixed(1);
  const up = (value) => (46 - (top ? value / top : 0) * 42).toFixed(1);
  const text = `${title}: ${least === top ? words(top) : `${words(least)} to ${words(top)}`} in ${stretch}`;
  const svg = draw("svg", { viewBox: "0 0 300 48", preserveAspectRatio: "none", role: "img", "aria-label": text });
  svg.append(draw("rect", { class: "ground", width: 300, height: 48 }));
  for (const [from, to, ill] of bad) {
    if (ill) svg.append(draw("rect", { class: "bad", x: across(from), width: Math.max(1, across(to) - across(from)), height: 48 }));
  }
  lines.forEach((line, number) => {
    let path = "";
    line.forEach((value, at) => {
      if (value !== null) path += `${at && line[at - 1] !== null ? "L" : "M"}${across(times[at])} ${up(value)}`;
    });
    svg.append(draw("path", { d: path, class: number ? "second" : "" }));
  });
  return make("div", { class: "chart" }, make("p", {}, text), svg);
}

// All of it.

function show() {
  if (!state) return;
  const { silence, view, at } = state;
  showHead(view);
  showSilence(silence ? `The daemon has not answered since ${clock(silence.since)} (${duration(at - silence.since)}): ${silence.text}.${view ? ` Below is how it was at ${clock(view.now)}.` : ""} The page goes on asking.` : "");
  if (!view) return;
  showProblems(view);
  showMap(view);
  showPeer(view);
  showTable(view);
}

let lostAt = null;

function wanted() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // not what the choice wrote
  }
}

function connect() {
  source?.close();
  source = new EventSource(`events?${new URLSearchParams({ node: wanted() })}`);
  source.onmessage = (event) => {
    lostAt = null;
    state = JSON.parse(event.data);
    show();
  };
  source.onerror = () => {
    lostAt ??= Date.now() / 1000;
    showSilence(`The server of this page has not answered since ${clock(lostAt)}. The page goes on trying.`);
    document.body.classList.add("stale");
    // After an answer that is no stream the browser gives up; a server that ended comes back.
    if (source.readyState !== EventSource.CLOSED) return;
    if (!state) history.replaceState(null, "", " "); // a node that is not there any more, perhaps
    setTimeout(connect, 2000);
  };
}

$("node").addEventListener("change", (event) => {
  chosen = "";
  location.hash = encodeURIComponent(event.target.value);
});
$("close").addEventListener("click", () => {
  const id = chosen;
  choose(chosen);
  map?.peers.get(id)?.group.focus();
});
window.addEventListener("hashchange", connect);
new ResizeObserver(() => {
  if (state?.view) showMap(state.view);
}).observe($("map-place"));
connect();
