"use strict";

// Swagger UI has a dark look, and leaves it to the page when.
const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();

// What it leaves without a name, or out of reach of the keyboard, gets both once it is drawn (WCAG 2.1, 4.1.2 and 2.1.1).
const mend = () => {
  for (const select of document.querySelectorAll("#reference select:not([aria-label])")) {
    select.setAttribute("aria-label", select.closest("[data-param-name]")?.dataset.paramName ?? "Example");
  }
  for (const code of document.querySelectorAll("#reference pre:not([tabindex])")) code.tabIndex = 0;
};
new MutationObserver(mend).observe(document.getElementById("reference"), { childList: true, subtree: true });

// The address is fixed: Swagger UI would otherwise be a page of ours that shows documents of others.
window.reference = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  validatorUrl: null,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  showCommonExtensions: true,
  syntaxHighlight: { theme: "tomorrow-night" }, // dark on any ground
});
