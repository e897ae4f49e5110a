import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { brotliCompressSync, constants } from "node:zlib";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

/** Lay a compressed form beside each file, so that the server needs no library for it. */
function compressed(): Plugin {
  let folder = "";
  return {
    name: "compressed",
    apply: "build",
    configResolved(config) {
      folder = resolve(config.root, config.build.outDir);
    },
    closeBundle() {
      for (const name of readdirSync(folder, { recursive: true, encoding: "utf-8" })) {
        if (!/\.(js|css|html|svg)$/.test(name)) continue;
        const plain = readFileSync(join(folder, name));
        const params = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY };
        writeFileSync(join(folder, `${name}.br`), brotliCompressSync(plain, { params }));
      }
    },
  };
}

// The page is served by luthier itself, below a strict content security policy: no inline code, no data: addresses.
// It is one file: all screens together compress to less than when each is alone, and there is nothing to wait for.
export default defineConfig({
  plugins: [svelte({ configFile: false }), compressed()],
  base: "/",
  build: {
    outDir: "../src/luthier/server/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    modulePreload: { polyfill: false },
    rolldownOptions: { output: { codeSplitting: false } },
    chunkSizeWarningLimit: 600,
    sourcemap: false,
    target: "es2022",
  },
  server: { proxy: { "/api": "http://127.0.0.1:7860" } },
});
