// First step of `npm start` and `npm test`. Where npm blocks install scripts, the
// `node` package has no binary and scripts fall back to the host's Node without a word.
const required = 24;

if (Number(process.versions.node.split('.')[0]) < required) {
  process.stderr.write(
    `This repository runs on Node.js ${required}; this script was started by ${process.versions.node} (${process.execPath}).\n` +
      'The repository brings its own Node through the `node` package. What to do:\n' +
      '  1. npm ci, when dependencies were not installed yet\n' +
      "  2. npm rebuild node --ignore-scripts=false, when npm blocked that package's install script\n" +
      `  3. or put a Node.js ${required} or newer of your own first in PATH\n`,
  );
  process.exit(1);
}
