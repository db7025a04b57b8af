/** @file Starts the page. */

import { MantineProvider } from "@mantine/core";
import "@mantine/core/styles.css";
import { createRoot } from "react-dom/client";
import { App } from "./app.tsx";
import "./page.css";
import { colours, theme } from "./theme.ts";

createRoot(document.getElementById("page")!).render(
  <MantineProvider theme={theme} cssVariablesResolver={colours} defaultColorScheme="auto">
    <App />
  </MantineProvider>,
);
