/** @file Colours of the page; text meets WCAG's 4.5 to 1 on light and dark. */

import { type CSSVariablesResolver, createTheme, type MantineThemeOverride } from "@mantine/core";

export const theme: MantineThemeOverride = createTheme({
  primaryColor: "indigo",
  primaryShade: { light: 7, dark: 8 },
  defaultRadius: "md",
  cursorType: "pointer",
  respectReducedMotion: true,
  fontFamily: "Inter, ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
  headings: { fontWeight: "650" },
});

export const colours: CSSVariablesResolver = ({ colors }) => ({
  variables: {},
  light: {
    "--mantine-color-body": "#fafbfc",
    "--mantine-color-dimmed": colors.gray[7],
    "--mantine-color-placeholder": colors.gray[7],
    "--page-surface": "#ffffff",
    "--page-line": colors.gray[3],
    "--page-hollow": colors.gray[1],
    "--mantine-color-error": colors.red[9],
  },
  dark: {
    "--mantine-color-body": "#15171b",
    "--mantine-color-dimmed": colors.gray[5],
    "--mantine-color-placeholder": colors.gray[5],
    "--page-surface": "#1d2025",
    "--page-line": "#31353d",
    "--page-hollow": "#22262c",
    "--mantine-color-error": colors.red[4],
  },
});
