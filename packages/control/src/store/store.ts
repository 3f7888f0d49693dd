import type { Log, Store } from '@flotilla/core';
import { listAudit, runAct } from './audit.ts';
import { dumpStore } from './backup/dump.ts';
import { movedNodes } from './moved-nodes.ts';
import { configVersion, installation } from './config-version.ts';
import { acceptJobs, findReplayed } from './detached/accept-jobs.ts';
import { deleteBodies, eraseBodies, loadBodies, loadResult, measureResult } from './detached/bodies.ts';
import { claimJobs } from './detached/claim-jobs.ts';
import { cancelJob, expireJobs } from './detached/end-jobs.ts';
import { finishJobs } from './detached/finish-jobs.ts';
import { jobMarks } from './detached/job-marks.ts';
import { findDetached, heldJobs, heldNodes, keepJobs } from './detached/held-jobs.ts';
import { nextDue, readyJobs, readyLanes } from './detached/ready-jobs.ts';
import { requeueJobs } from './detached/requeue-jobs.ts';
import { startJobs } from './detached/start-jobs.ts';
import { correctUsage, findUsage, loadReservations } from './detached/usage.ts';
import { loadCatalogues } from './discovery/catalogues.ts';
import { findDiscovery } from './discovery/find-discovery.ts';
import { finishDiscovery } from './discovery/finish-discovery.ts';
import { noteDiscoveries } from './discovery/note-discoveries.ts';
import { openDiscoveries } from './discovery/open-discoveries.ts';
import { openDiscovery } from './discovery/open-discovery.ts';
import { drawLimits } from './draw-limits.ts';
import { endOrphans } from './end-orphans.ts';
import { enrolNode } from './enrol-node.ts';
import { flushSeen } from './flush-seen.ts';
import { loadSpending } from './load-spending.ts';
import { insertKey, loadKeys, revokeKey, updateKey } from './keys.ts';
import { findJob, listJobs } from './list-jobs.ts';
import { listUsage, summarizeUsage } from './list-usage.ts';
import { MIGRATIONS } from './migrations/all.ts';
import { deleteNode, loadNodes, revokeNode, rotateCredential, updateNode } from './nodes.ts';
import { deleteProvider, insertProvider, loadProviders, updateProvider } from './providers.ts';
import { recordOpen } from './record-open.ts';
import { bumpReplica, endReplica, enterReplica, listReplicas } from './replicas.ts';
import { deleteRoute, insertRoute, loadRoutes, updateRoute } from './routes.ts';
import { saveDescriptors } from './save-descriptors.ts';
import { saveNodeStates } from './save-node-states.ts';
import { resealSecrets } from './reseal-secrets.ts';
import { secretCanary } from './secret-canary.ts';
import { settle } from './settle.ts';
import { type Engine, prepared } from './sql.ts';
import { sweep } from './sweep.ts';
import { takeEpochs } from './take-epochs.ts';
import { deleteToken, insertToken, listTokens } from './tokens.ts';
import { touchKeys } from './touch-keys.ts';

const ping = prepared('ping', 'select 1');

/** The port, each operation bound to one engine. What an operation does is in the file of its name. */
export function storeOn(sql: Engine, log: Log): Store {
  return {
    engine: sql.kind,
    durability: sql.durability,
    ping: async () => void (await sql.query(ping)),
    close: () => sql.close(),
    dump: (product_version, now) => dumpStore(sql, { migrations: MIGRATIONS, product_version, now }),

    configVersion: () => configVersion(sql),
    installation: () => installation(sql),
    movedNodes: (since, known) => movedNodes(sql, since, known),
    loadKeys: () => loadKeys(sql),
    loadNodes: (known) => loadNodes(sql, log, known),

    insertKey: (key) => insertKey(sql, key),
    updateKey: (id, patch) => updateKey(sql, id, patch),
    revokeKey: (id, at) => revokeKey(sql, id, at),
    touchKeys: (used) => touchKeys(sql, used),

    insertToken: (token) => insertToken(sql, token),
    listTokens: (page, now) => listTokens(sql, page, now),
    deleteToken: (id) => deleteToken(sql, id),
    enrolNode: (enrolment) => enrolNode(sql, enrolment),

    takeEpochs: (replica, nodes) => takeEpochs(sql, replica, nodes),
    updateNode: (id, patch) => updateNode(sql, id, patch, log),
    rotateCredential: (node, credential, old_expires_at) =>
      rotateCredential(sql, node, credential, old_expires_at),
    revokeNode: (id, at) => revokeNode(sql, id, at, log),
    deleteNode: (id) => deleteNode(sql, id),
    saveDescriptors: (changes) => saveDescriptors(sql, changes),
    saveNodeStates: (changes) => saveNodeStates(sql, changes),
    flushSeen: (seen) => flushSeen(sql, seen),

    loadProviders: () => loadProviders(sql),
    insertProvider: (provider) => insertProvider(sql, provider),
    updateProvider: (id, patch) => updateProvider(sql, id, patch),
    deleteProvider: (id) => deleteProvider(sql, id),
    loadRoutes: () => loadRoutes(sql),
    insertRoute: (route) => insertRoute(sql, route),
    updateRoute: (id, patch) => updateRoute(sql, id, patch),
    deleteRoute: (id) => deleteRoute(sql, id),
    secretCanary: (sealed) => secretCanary(sql, sealed),
    resealSecrets: (canary, reseal) => resealSecrets(sql, canary, reseal),

    enterReplica: (id, bus) => enterReplica(sql, id, bus),
    bumpReplica: (id) => bumpReplica(sql, id),
    endReplica: (id) => endReplica(sql, id),
    listReplicas: () => listReplicas(sql),
    openSessions: () => sql.openSessions(),

    drawLimits: (replica, draws) => drawLimits(sql, replica, draws),

    settle: (batch) => settle(sql, batch),
    recordOpen: (batch) => recordOpen(sql, batch),
    endOrphans: (replica, at) => endOrphans(sql, replica, at),
    listJobs: (filter, page) => listJobs(sql, filter, page),
    findJob: (id) => findJob(sql, id),

    listUsage: (filter, page) => listUsage(sql, filter, page),
    summarizeUsage: (filter, by) => summarizeUsage(sql, filter, by),
    loadSpending: (since) => loadSpending(sql, since),

    act: (act, run) => runAct(sql, log, act, run),
    listAudit: (filter, page) => listAudit(sql, filter, page),

    sweep: (limits, now) => sweep(sql, limits, now),

    acceptJobs: (batch) => acceptJobs(sql, batch),
    findReplayed: (batch) => findReplayed(sql, batch),
    claimJobs: (request) => claimJobs(sql, request),
    startJobs: (batch) => startJobs(sql, batch),
    requeueJobs: (batch) => requeueJobs(sql, batch),
    finishJobs: (batch) => finishJobs(sql, batch),
    keepJobs: (node, epoch, replica, jobs) => keepJobs(sql, node, epoch, replica, jobs),
    heldJobs: (node) => heldJobs(sql, node),
    heldNodes: () => heldNodes(sql),
    readyLanes: (limit, after) => readyLanes(sql, limit, after),
    nextDue: (spared) => nextDue(sql, spared),
    cancelJob: (id, message) => cancelJob(sql, id, message),
    expireJobs: (limit, spared) => expireJobs(sql, limit, spared),
    readyJobs: (limit) => readyJobs(sql, limit),
    findDetached: (id) => findDetached(sql, id),
    jobMarks: (ids) => jobMarks(sql, ids),
    findUsage: (jobs) => findUsage(sql, jobs),
    correctUsage: (batch) => correctUsage(sql, batch),
    loadReservations: (limit) => loadReservations(sql, limit),
    loadBodies: (id) => loadBodies(sql, id),
    measureResult: (id) => measureResult(sql, id),
    loadResult: (id) => loadResult(sql, id),
    deleteBodies: (id) => deleteBodies(sql, id),
    eraseBodies: (limit) => eraseBodies(sql, limit),

    openDiscovery: (request) => openDiscovery(sql, request),
    noteDiscoveries: (notes) => noteDiscoveries(sql, notes),
    finishDiscovery: (end) => finishDiscovery(sql, end),
    openDiscoveries: (limit) => openDiscoveries(sql, limit),
    findDiscovery: (id) => findDiscovery(sql, id),
    loadCatalogues: (node) => loadCatalogues(sql, node),
  };
}
