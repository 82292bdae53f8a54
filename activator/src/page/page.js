(() => {
  "use strict";
  const box = document.getElementById("dormouse");
  if (!box) return;
  const part = (name) => box.querySelector(".dm-" + name);
  const began = performance.now() - Number(box.dataset.elapsed || 0);
  const opened = performance.now();
  const patience = 10 * 60 * 1000;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  let ticking;

  const show = (phase, reason) => {
    if (box.dataset.phase !== phase) {
      box.dataset.phase = phase;
      // One change is one announcement.
      part("text").textContent = box.dataset[phase] || "";
    }
    part("reason").textContent = reason || "";
  };
  const tick = () => {
    part("elapsed").textContent = Math.round((performance.now() - began) / 1000) + " s";
  };
  const stop = (reason) => {
    clearInterval(ticking);
    show("failed", reason);
    part("again").hidden = false;
  };

  // The Service is asked for again at most five times a minute, each time after a longer pause: an answer that comes back
  // as this page must not become a loop.
  const key = "dormouse " + location.pathname;
  const remembered = () => {
    try {
      const seen = JSON.parse(sessionStorage.getItem(key));
      if (seen && Date.now() - seen.at < 60000) return seen;
    } catch { /* Storage may be off. */ }
    return { at: Date.now(), times: 0 };
  };
  const proceed = async () => {
    const seen = remembered();
    if (seen.times >= 5) return stop("");
    await pause(seen.times === 0 ? 0 : 500 * 2 ** seen.times);
    try {
      sessionStorage.setItem(key, JSON.stringify({ at: seen.at, times: seen.times + 1 }));
    } catch {
      // Without a memory, a pause is what there is against a loop.
      await pause(2000);
    }
    clearInterval(ticking);
    location.reload();
  };

  const wait = async () => {
    let lost = 0;
    while (performance.now() - opened < patience) {
      const asked = performance.now();
      try {
        const answer = await fetch(location.origin + location.pathname + location.search, {
          headers: { "Dormouse-Wait": box.dataset.phase },
          cache: "no-store",
          credentials: "same-origin",
          redirect: "manual",
          signal: AbortSignal.timeout(40000),
        });
        // Somebody else answers this address by now: the Service itself, or a login before it.
        if (!answer.headers.has("dormouse-wait")) return proceed();
        const now = await answer.json();
        lost = 0;
        if (now.phase === "failed") return stop(now.reason);
        show(now.phase, now.reason);
        if (now.phase === "ready") return proceed();
      } catch {
        lost += 1;
        if (lost > 20) break;
      }
      await pause(Math.max(lost * 500, 300 - (performance.now() - asked)));
    }
    stop("");
  };

  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  ticking = setInterval(tick, 1000);
  wait();
})();
