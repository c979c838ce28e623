
"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const slider = document.getElementById("step");
  if (slider) {
    const frames = all(".frame");
    const show = () => {
      frames.forEach((frame, place) => { frame.hidden = place !== Number(slider.value); });
      const step = frames[Number(slider.value)].dataset.step;
      document.getElementById("shown").textContent = step;
      slider.setAttribute("aria-valuetext", `step ${step}`);
    };
    slider.addEventListener("input", show);
    show();
  }
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
  const draw = () => {
    const axis = chosen("axis"), scale = chosen("scale");
    for (const figure of all("#curves figure")) {
      let known = false;
      for (const drawn of figure.querySelectorAll(".drawn")) {
        drawn.hidden = drawn.dataset.axis !== axis || drawn.dataset.scale !== scale;
        known ||= !drawn.hidden;
      }
      figure.querySelector(".unknown").hidden = known;
    }
  };
  const radios = all("#curves input[type=radio]");
  radios.forEach((radio) => radio.addEventListener("change", draw));
  if (radios.length) draw();
  const said = document.getElementById("said");
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Where there is no clipboard to ask, as on pages that came without encryption.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const done = await copied(button.previousElementSibling.textContent);
      button.focus();
      button.textContent = done ? "Copied" : "Select it and copy";
      said.textContent = done ? "Copied the command" : "The browser does not let the page copy";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
