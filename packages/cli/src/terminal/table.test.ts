import { describe, expect, test } from 'vitest';
import { type Column, facts, table } from './table.ts';
import { fit, harmless, widthOf } from './text.ts';

interface Row {
  id: string;
  note: string;
  count: number;
}
const COLUMNS: Column<Row>[] = [
  { head: 'ID', cell: ({ id }) => id, whole: true },
  { head: 'NOTE', cell: ({ note }) => note, flexible: true },
  { head: 'N', cell: ({ count }) => String(count), align: 'right' },
];
const rows: Row[] = [
  { id: 'job_01J0000000000000000000000A', note: 'a rather long remark that has to give way', count: 7 },
  { id: 'job_01J0000000000000000000000B', note: 'short', count: 1234 },
];

describe('a table', () => {
  test('has no line wider than the terminal, and cuts no id', () => {
    for (const columns of [45, 60, 70]) {
      const lines = table(rows, COLUMNS, columns).split('\n');
      expect(Math.max(...lines.map(widthOf))).toBeLessThanOrEqual(columns);
      expect(lines[1]).toContain('job_01J0000000000000000000000A');
      expect(lines[1]).toContain('…');
    }
  });

  test('leaves out what is optional rather than be wider than the terminal', () => {
    const columns = COLUMNS.map((column) => ({ ...column, optional: column.head === 'N' }));
    const [head] = table(rows, columns, 40).split('\n');
    expect(head).toMatch(/^ID +NOTE$/);
    expect(table(rows, columns, 60).split('\n')[0]).toMatch(/^ID +NOTE +N$/);
  });

  test('is whole and aligned where there is no terminal', () => {
    expect(table(rows, COLUMNS)).toBe(
      [
        'ID                              NOTE                                          N',
        'job_01J0000000000000000000000A  a rather long remark that has to give way     7',
        'job_01J0000000000000000000000B  short                                      1234',
      ].join('\n'),
    );
  });

  test('keeps one row on one line, whatever is in a cell', () => {
    const nasty = [{ id: 'x', note: 'a\nb\u001B[2Jc\u0007', count: 0 }];
    expect(table(nasty, COLUMNS).split('\n')).toHaveLength(2);
    expect(table(nasty, COLUMNS)).not.toContain('\u001B');
  });
});

describe('text in a terminal', () => {
  test('is measured in columns, not characters', () => {
    expect([widthOf('abc'), widthOf('日本'), widthOf('🚢'), widthOf('e\u0301')]).toEqual([3, 4, 2, 1]);
    expect(fit('日本語です', 5)).toBe('日本…');
  });

  test('loses what could drive the terminal, and keeps its lines', () => {
    expect(harmless('one\ttwo\n\u001B]0;title\u0007three\r')).toBe('one\ttwo\n]0;titlethree');
  });

  test('leaves out facts that are not known', () => {
    expect(
      facts([
        ['id', 'x'],
        ['long name', 'y'],
        ['gone', null],
      ]),
    ).toBe('id         x\nlong name  y');
  });
});
