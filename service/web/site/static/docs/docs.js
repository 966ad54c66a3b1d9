"use strict";

// Swagger UI has a dark theme; the page must switch it on.
const dark = matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyTheme);
applyTheme();

// Elements that Swagger UI renders without an accessible name or keyboard access get both (WCAG 2.1, 4.1.2 and 2.1.1).
const fixAccessibility = () => {
  for (const select of document.querySelectorAll("#reference select:not([aria-label])")) {
    select.setAttribute("aria-label", select.closest("[data-param-name]")?.dataset.paramName ?? "Example");
  }
  for (const code of document.querySelectorAll("#reference pre:not([tabindex])")) code.tabIndex = 0;
};
new MutationObserver(fixAccessibility).observe(document.getElementById("reference"), { childList: true, subtree: true });

// The URL is fixed: otherwise a query parameter could make this page show another document.
window.reference = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  validatorUrl: null,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  showCommonExtensions: true,
  syntaxHighlight: { theme: "tomorrow-night" }, // dark in both themes
});
