/* Samples: filtered as plain data; only a page of them at a time becomes elements. */
function startSamples() {
  const S = DATA.samples;
  const PAGE = 20;
  const state = { found: [], shown: 0 };
  const text = (sample) => sample.tokens.map((t) => S.vocabulary[t]).join("");
  const lower = S.samples.map((sample) => text(sample).toLowerCase());

  fill($("sample-source"), ["", ...S.sources.keys()], (v) => (v === "" ? "all" : S.sources[v].name));
  fill($("sample-group"), ["", ...S.groups.keys()], (v) => (v === "" ? "all" : S.groups[v]));
  for (const [i, name] of S.labels.entries()) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: i, checked: true });
    box.addEventListener("change", find);
    label.append(box, name);
    $("sample-labels").append(label);
  }

  function find() {
    const labels = new Set([...document.querySelectorAll("#sample-labels input:checked")].map((b) => Number(b.value)));
    const source = $("sample-source").value, group = $("sample-group").value, words = $("sample-text").value.toLowerCase();
    state.found = [...S.samples.keys()].filter((i) => {
      const one = S.samples[i];
      return labels.has(one.label) && (source === "" || one.source === Number(source)) && (group === "" || one.group === Number(group)) && lower[i].includes(words);
    });
    const by = $("sample-order").value;
    if (by !== "rank") state.found.sort((a, b) => (S.samples[a][by] ?? Infinity) - (S.samples[b][by] ?? Infinity));
    state.shown = 0;
    $("sample-list").replaceChildren();
    more();
  }
  function more() {
    const next = state.found.slice(state.shown, state.shown + PAGE);
    $("sample-list").append(...next.map((i) => element(S.samples[i])));
    state.shown += next.length;
    const left = state.found.length - state.shown;
    $("sample-count").textContent = `${state.found.length.toLocaleString("en")} of ${S.samples.length.toLocaleString("en")} samples match; ${state.shown.toLocaleString("en")} shown.`;
    $("sample-more").hidden = left === 0;
    $("sample-more").textContent = `Show ${Math.min(PAGE, left)} more`;
  }
  function element(sample) {
    const card = Object.assign(document.createElement("article"), { className: "sample" });
    const head = Object.assign(document.createElement("h3"), { textContent: `score ${sample.score.toPrecision(4)} · ${S.labels[sample.label]}` });
    const loss = sample.loss === null ? "" : `, loss ${sample.loss.toFixed(3)} nats`;
    const cut = S.cut === null ? "" : `, tokens from ${sample.first} on`;
    const facts = Object.assign(document.createElement("div"), { className: "quiet", textContent: `sample ${sample.id}, step ${sample.step}${loss}${cut} · ${S.groups[sample.group]} · ${S.sources[sample.source].name}` });
    const body = document.createElement("pre");
    body.append(...sample.tokens.map((t, i) => token(S.vocabulary[t], sample.levels[i], sample.largest)));
    card.append(head, facts, body);
    return card;
  }
  function token(word, level, largest) {
    if (Math.abs(level) < 2) return document.createTextNode(word);
    const span = Object.assign(document.createElement("span"), { textContent: word, title: `${((level / 100) * largest).toPrecision(3)}` });
    span.style.background = level > 0 ? `rgba(213,94,0,${(0.008 * level).toFixed(2)})` : `rgba(0,114,178,${(-0.008 * level).toFixed(2)})`;
    if (Math.abs(level) >= 60) span.className = "strong";
    return span;
  }

  for (const id of ["sample-source", "sample-group", "sample-order"]) $(id).addEventListener("change", find);
  let waiting = null;
  $("sample-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(find, 150); });
  $("sample-more").addEventListener("click", more);
  find();
}
if (DATA.samples) startSamples();
