import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// The page is served by luthier itself, below a strict content security policy: no inline code, no data: addresses.
export default defineConfig({
  plugins: [svelte()],
  base: "/",
  build: {
    outDir: "../src/luthier/server/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
    target: "es2022",
  },
  server: { proxy: { "/api": "http://127.0.0.1:7860" } },
});
