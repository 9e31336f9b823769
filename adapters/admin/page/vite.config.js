import preact from "@preact/preset-vite";
import { defineConfig } from "vite";

// `npm run dev` shows the page against a node on its usual port.
export default defineConfig({
  plugins: [preact()],
  build: { outDir: "dist", emptyOutDir: true, assetsInlineLimit: 0 },
  server: { proxy: { "/api": "http://127.0.0.1:9001" } },
});
