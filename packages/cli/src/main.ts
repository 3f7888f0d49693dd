import { run } from './program.ts';
import { watchOutput } from './terminal/output.ts';

watchOutput();
process.exitCode = await run(process.argv.slice(2));
