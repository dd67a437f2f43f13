/* The threads that share the work of a kernel: a team belongs to one engine and is bound to whichever thread
 * runs a step of it. A thread without a team computes alone.
 *
 * Unlike an OpenMP region, a job waits for nobody who has not begun: pieces of work are taken one by one, and
 * a helper that the system keeps off its core leaves its share to the others. */
#ifndef TEAM_H
#define TEAM_H

#include <stdint.h>

enum { MAX_THREADS = 512 };

/* Do items begin..end-1. thread: 0..team_size()-1, of the thread that calls. */
typedef void team_work(void *context, int64_t begin, int64_t end, int thread);

/* Threads of the calling thread's team, that thread included; at least 1. */
int team_size(void);

/* Do items 0..count-1, cut into pieces of nearly the same length, on the calling thread's team; returns when
 * all are done. How they are cut and who does them must not matter. */
void team_share(int64_t count, int64_t pieces, team_work *work, void *context);

/* team_share for rows of a loop: pieces small enough to be even, on one thread unless `large`. */
static inline void team_rows(int64_t rows, int large, team_work *work, void *context) {
    int64_t pieces = large ? 4 * team_size() : 1;
    team_share(rows, pieces < rows ? pieces : rows, work, context);
}

#endif
