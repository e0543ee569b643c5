"use strict";
// Draws the page's charts, follows the theme, hides and shows lines, and, on a page that follows a
// run, brings in what is new. All data come from the element "charts"; nothing is fetched but
// live.json of the page's own server.
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ---- theme ----

  const remembered = {
    get() { try { return localStorage.getItem("counterpoint-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("counterpoint-theme", value); } catch { /* a file */ } },
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const models = () => Bokeh.documents.flatMap((one) => [...one.all_models]);

  function paint() {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const model of models()) {
      const changes = {};
      for (const tag of model.tags ?? []) {
        const [attribute, role] = String(tag).split("=");
        if (attribute === "line") continue;
        changes[attribute] = attribute === "palette" ? value(role).split(" ") : value(role);
      }
      if (Object.keys(changes).length) model.setv(changes);
    }
    offer();
  }

  function offer() {
    document.getElementById("theme").textContent = data.words[isDark() ? "Light colours" : "Dark colours"];
  }

  const wanted = remembered.get();
  if (wanted === "light" || wanted === "dark") root.dataset.theme = wanted;
  dark.addEventListener("change", paint);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered.set(root.dataset.theme);
    paint();
  });

  // ---- lines shown, and what they are drawn over ----

  for (const key of document.querySelectorAll(".key")) {
    key.addEventListener("click", () => {
      const shown = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(shown));
      for (const model of models()) {
        if (model.tags?.includes(`line=${key.dataset.line}`)) model.visible = shown;
      }
    });
  }

  for (const choice of document.querySelectorAll("input[name=axis]")) {
    choice.addEventListener("change", () => {
      for (const model of models()) {
        if (!model.tags?.some((tag) => String(tag).startsWith("line="))) continue;
        for (const glyph of [model.glyph, model.hover_glyph]) {
          if (glyph) glyph.x = { field: choice.value };
        }
      }
      for (const one of Bokeh.documents) {
        for (const figure of one.roots()) {
          for (const axis of figure.below) {
            if ("axis_label" in axis && axis.axis_label !== null) axis.axis_label = choice.dataset.label;
          }
        }
        one.get_model_by_name("steps")?.reset();
      }
    });
  }

  // ---- what is folded opens for those who are led there, and on paper ----

  const unfold = (hash) => {
    const part = hash.length > 1 ? document.getElementById(hash.slice(1)) : null;
    for (const one of part?.querySelectorAll("details.part") ?? []) one.open = true;
  };
  for (const link of document.querySelectorAll("a[href^='#']")) {
    link.addEventListener("click", () => unfold(link.getAttribute("href")));
  }
  unfold(location.hash);
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details")) one.open = true;
  });

  // ---- links inside a notebook's frame, where they would lead to the notebook's own address ----

  if (location.protocol === "about:") {
    for (const link of document.querySelectorAll("a[href^='#']")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        document.getElementById(link.getAttribute("href").slice(1))?.scrollIntoView();
      });
    }
  }

  // ---- news of a run that goes on ----

  function refresh(news) {
    for (const [id, content] of Object.entries(news.parts)) {
      const element = document.getElementById(id);
      if (!element || element.dataset.content === content) continue;
      const open = [...element.querySelectorAll("details")].map((one) => one.open);
      element.innerHTML = content;
      element.dataset.content = content;
      [...element.querySelectorAll("details")].forEach((one, place) => { one.open = !!open[place]; });
    }
    const [drawn] = Bokeh.documents;
    for (const [name, columns] of Object.entries(news.sources)) {
      const source = drawn.get_model_by_name(name);
      if (!source) continue;
      // JSON has no NaN
      const numbers = (column) => column.map((value) => value ?? NaN);
      source.data = Object.fromEntries(
        Object.entries(columns).map(([column, values]) => [column, numbers(values)]),
      );
    }
    for (const [name, [low, high]] of Object.entries(news.scales)) {
      drawn.get_model_by_name(`${name}/scale`)?.setv({ low, high });
    }
  }

  function follow() {
    const sign = document.getElementById("live");
    let version = data.live.version;
    const say = (text, lost) => { sign.textContent = text; sign.classList.toggle("lost", lost); };
    async function ask() {
      let pause = 2000;
      try {
        const answer = await fetch("live.json", { headers: { "If-None-Match": `"${version}"` } });
        if (answer.status === 200) {
          const news = await answer.json();
          if (news.shape !== data.live.shape) {
            sessionStorage.setItem("counterpoint-scroll", String(scrollY));
            location.reload();
            return;
          }
          refresh(news);
          version = news.version;
          root.dataset.version = version;
          say(news.state, false);
        } else if (answer.status !== 304) {
          say(data.words["the run cannot be read"], true);
          pause = 5000;
        }
      } catch {
        say(data.words["counterpoint watch has ended"], true);
        pause = 5000;
      }
      setTimeout(ask, document.hidden ? 4 * pause : pause);
    }
    say(data.live.state, false);
    const scroll = sessionStorage.getItem("counterpoint-scroll");
    sessionStorage.removeItem("counterpoint-scroll");
    if (scroll !== null) scrollTo({ top: Number(scroll), behavior: "instant" });
    setTimeout(ask, 1000);
  }

  // ---- drawing ----

  async function draw() {
    const item = { docid: "report", roots: data.places, root_ids: Object.keys(data.places) };
    if (Object.keys(data.places).length) {
      await Bokeh.embed.embed_items({ report: data.document }, [item]);
    }
    // charts come in the light theme's colours
    if (isDark()) paint();
    offer();
    // a finger scrolls the page; to zoom, a tool has to be chosen
    if (matchMedia("(pointer: coarse)").matches) {
      for (const model of models()) if (model.toolbar) model.toolbar.active_drag = null;
    }
    root.dataset.drawn = String(Math.round(performance.now()));
    if (data.live) follow();
  }
  void draw();
})();
