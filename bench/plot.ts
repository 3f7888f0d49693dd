import { figure } from './figure.ts';

/**
 * Bars, one group a cell and one bar a target; plain SVG that reads on light and on dark. Each group has its own scale:
 * what is compared are the bars of one group, and a group of large values would leave those of another one pixel.
 */
export interface Bars {
  title: string;
  unit: string;
  groups: { label: string; bars: { name: string; value: number }[] }[];
}

const WIDTH = 1040;
const LEFT = 330;
const BAR = 16;
const GAP = 4;
const GROUP_GAP = 30;
const COLOURS = [
  '#6b7280',
  '#9ca3af',
  '#a8a29e',
  '#d6d3d1',
  '#f59e0b',
  '#60a5fa',
  '#2563eb',
  '#34d399',
  '#059669',
];

export function bars({ title, unit, groups }: Bars): string {
  const names = [...new Set(groups.flatMap(({ bars: all }) => all.map(({ name }) => name)))];
  const parts: string[] = [];
  let y = 40;
  for (const { label, bars: all } of groups) {
    parts.push(text(10, y + 12, label, 'font-weight="bold"'));
    y += 20;
    const most = Math.max(...all.map(({ value }) => value).filter(Number.isFinite), Number.MIN_VALUE);
    for (const { name, value } of all) {
      const width = Number.isFinite(value) ? Math.max(1, (value / most) * (WIDTH - LEFT - 110)) : 0;
      const colour = COLOURS[names.indexOf(name) % COLOURS.length]!;
      parts.push(text(LEFT - 8, y + BAR - 4, name, 'text-anchor="end"'));
      parts.push(
        `<rect x="${LEFT}" y="${y}" width="${width.toFixed(1)}" height="${BAR}" rx="2" fill="${colour}"/>`,
      );
      parts.push(text(LEFT + width + 6, y + BAR - 4, `${figure(value)} ${unit}`));
      y += BAR + GAP;
    }
    y += GROUP_GAP - GAP;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" font-family="system-ui, sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${y}" fill="#ffffff"/>`,
    text(10, 22, title, 'font-size="16" font-weight="bold"'),
    text(WIDTH - 10, 22, 'each group to its own scale', 'text-anchor="end"'),
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

function text(x: number, y: number, content: string, more = ''): string {
  const safe = content.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  return `<text x="${x.toFixed(1)}" y="${y}" fill="#111827" ${more}>${safe}</text>`;
}
