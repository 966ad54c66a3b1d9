"use strict";

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
  syntaxHighlight: { theme: "idea" },
});
