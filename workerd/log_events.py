"""Every event that workerd logs, with its meaning; what people count and alert on."""

from __future__ import annotations

EVENTS: dict[str, str] = {
    # -- any role or pool
    "output": "A line that a handler printed or logged, with the job and attempt it belongs to.",
    "peer.dropped": "A connection was closed because the other end broke the protocol; it connects again.",
    "store.available": "The store answers again after it was unavailable.",
    "store.unavailable": "The store does not answer; work goes on by itself when it is back.",
    # -- supervisor
    "cgroup.not_removed": "Processes of a removed pool are still dying in its control group, which is left.",
    "child.exited": "A role or pool died; it is restarted in `restart_in_s` seconds, unless the node ends.",
    "child.fork_failed": "The kernel refused to fork a role or pool; it is tried again.",
    "child.started": "A role or pool was forked.",
    "drain.skipped": "A second stop: running jobs are interrupted now, and will run again.",
    "node.draining": "The shutdown began; running jobs may finish within `drain_s` seconds.",
    "node.ready": "Every role is up, and every pool is up or quarantined.",
    "node.start_failed": "A role cannot work on this node, so the node stops instead of becoming ready.",
    "node.stopped": "All children have ended, and so does the supervisor.",
    "pool.quarantined": "A pool died too often: it is tried again at long intervals, its jobs stay `new`.",
    "reload.failed": "The new configuration is in force, but these children did not come up with it.",
    "reload.finished": "The new configuration is in force, and every restarted child is up.",
    "reload.refused": "The new configuration is wrong; the old one stays in force.",
    "reload.started": "The new configuration is valid; these children are restarted one after the other.",
    "role.failed": "A role cannot work any more on a node that was ready; the others go on.",
    "runtime_files.restored": "Another program removed files of node.runtime_dir; they were made anew.",
    "supervisor.callback_failed": "A bug in workerd: an exception in the supervisor, which goes on.",
    # -- dispatcher
    "claim.refused": "The store refuses to claim jobs of this handler; it is tried again later.",
    "claims.rescued": "Claims of a dead node were closed as lost.",
    "claims.settled": "Claims of this node that no pool held were closed: released, or lost with their pool.",
    "lease.expired": "The lease was not renewed in time; nothing is started until it is.",
    "lease.renewed": "The lease is held again after it expired.",
    "node.kept": "Claims are left at the end of this node; its next start takes care of them.",
    "node.refused": "This node may not work: wrong schema of the store, or its name is taken.",
    "node.registered": "This node is in the store's table of nodes and may claim jobs.",
    "node.removed": "A dead node without claims was removed from the table of nodes.",
    "schedules.removed": "Schedules that no live node has were removed from the store.",
    "store.created": "The embedded store was empty and has its schema now.",
    "task.blocked": "Other transactions held the rows that this task needs; it is tried again.",
    "task.crashed": "A bug in workerd: this task failed; it is tried again, with the traceback in the log.",
    "task.refused": "The store refused a statement of this task, or a row cannot be read; it is tried again.",
    # -- pool
    "attempt.failed": "An attempt failed; `status` says whether the job is retried.",
    "cgroup.create_failed": "The pool runs without a control group; its limits are kept by the pool itself.",
    "handlers.started_threads": "An import started threads, which workers lack: set `preload = false`.",
    "output.truncated": "A job printed more than is logged; the rest was dropped.",
    "pool.crash_loop": "Workers without a job died too often; the pool ends and is quarantined.",
    "pool.load_failed": "The handlers of this pool do not load; the pool ends and is quarantined.",
    "worker.died": "A worker without a job died; another one is forked.",
    "worker.fork_failed": "The kernel refused to fork a worker; it is retried.",
    "worker.not_ready": "A worker could not load its handlers or run `init`.",
    # -- ingester
    "spool.damaged": "A file of the spool is damaged: it is read as far as possible, then kept aside.",
    "spool.opened": "A former process left outcomes in the spool; they are replayed first.",
    "spool.row_damaged": "A damaged row of the spool is skipped: its attempt is found lost and runs again.",
    "spool.unreadable": "A file of the spool cannot be opened; it is tried again when the ingester restarts.",
    # -- gateway
    "gateway.bind_failed": "The gateway cannot open its listen address; it retries every second.",
    "gateway.listening": "The gateway accepts connections.",
    "route.crashed": "A bug in a route or a page; its incident id is also in the answer.",
    # -- command line
    "log.reopened": "SIGUSR1 made the daemon reopen its log file, as after a rotation.",
}
