/* Teams of threads (team.h): how work is handed out, and how threads wait for it.
 *
 * Waiting: a decode step is hundreds of short jobs, some ten microseconds apart, and waking a sleeping thread
 * takes longer than that. So a helper spins for a moment after each job before it goes to sleep. Where other
 * programs want the cores, that is the wrong thing to do: a thread that spins uses up its share of the core,
 * and is then put aside in the middle of its next piece. Both sides notice: a helper finds that time has
 * passed while it spun, the caller that a piece takes far longer than its own did. For a while helpers then
 * sleep at once, or the caller works alone; each time it happens again, for twice as long.
 *
 * Where torch's own loops run on several threads, those do our work too: OpenMP's spin for milliseconds, and
 * helpers beside them would get no core. */
#include "team.h"
#include "rootlet.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* nanoseconds */
#ifndef HELPER_SPIN
#define HELPER_SPIN 200000 /* after a job, before a helper sleeps */
#endif
#define CALLER_SPIN 50000      /* for the last helpers of a job, before the caller sleeps */
#define PUT_ASIDE 400000       /* a helper that spun for so long between two looks at the clock did not run */
#define STALL 400000           /* beyond the caller's own work: so late a helper does not run */
#define SHORTEST_PAUSE 4000000 /* of spinning or of sharing */
#define LONGEST_PAUSE 1000000000

/* The state of a team is one word: the job's number, whether helpers may still join, how many have. */
#define HELPERS 0x3ffu
#define OPEN 0x400u
#define ENDING 0x800u
#define JOB 0x1000u /* the lowest bit of the number */

_Static_assert(MAX_THREADS <= HELPERS, "the state counts every helper");

/* A measure that is taken for a while, each time for twice as long as the last if that was soon before. */
struct pause {
    _Atomic int64_t until, length;
};

struct team {
    _Atomic uint32_t state;
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic int64_t next; /* piece */
    _Alignas(64) _Atomic uint32_t caller_sleeps;
    _Atomic int busy;
    int64_t count, pieces;
    team_work *work;
    void *context;
    int size, num_helpers;
    unsigned forks;
    struct pause sharing, spinning;
    /* OpenMP's, if its threads are to do the work instead of helpers; else NULL */
    void (*parallel)(void (*region)(void *), void *data, unsigned threads, unsigned flags);
    int (*thread_number)(void);
    int64_t stalled; /* nanoseconds that the caller waited for helpers that did not run */
#if !defined(__linux__)
    pthread_mutex_t mutex;
    pthread_cond_t changed;
#endif
    struct helper {
        struct team *team;
        pthread_t thread;
        int index;
    } helpers[];
};

static _Thread_local struct team *bound;

/* A child of fork() has teams, but none of their helpers. */
static unsigned forks;
static pthread_once_t watched = PTHREAD_ONCE_INIT;
static void count_fork(void) { forks++; }
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- sleeping until a word changes ---- */

#if defined(__linux__)
static void sleep_while(struct team *t, _Atomic uint32_t *word, uint32_t value) {
    (void)t;
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(struct team *t, _Atomic uint32_t *word, int64_t most) {
    (void)t;
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, most < INT_MAX ? (int)most : INT_MAX, NULL, NULL, 0);
}
#else
static void sleep_while(struct team *t, _Atomic uint32_t *word, uint32_t value) {
    pthread_mutex_lock(&t->mutex);
    if (atomic_load(word) == value) {
        pthread_cond_wait(&t->changed, &t->mutex);
    }
    pthread_mutex_unlock(&t->mutex);
}

static void wake(struct team *t, _Atomic uint32_t *word, int64_t most) {
    (void)word, (void)most;
    pthread_mutex_lock(&t->mutex);
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
}
#endif

/* ---- pauses ---- */

static int is_on(struct pause *p, int64_t time) {
    return time < atomic_load_explicit(&p->until, memory_order_relaxed);
}

static void begin_pause(struct pause *p, int64_t time) {
    int64_t ended = atomic_load_explicit(&p->until, memory_order_relaxed);
    int64_t last = atomic_load_explicit(&p->length, memory_order_relaxed);
    int64_t length = time - ended < 2 * last + SHORTEST_PAUSE ? 2 * last : 0;
    length = length > SHORTEST_PAUSE ? length : SHORTEST_PAUSE;
    length = length < LONGEST_PAUSE ? length : LONGEST_PAUSE;
    atomic_store_explicit(&p->length, length, memory_order_relaxed);
    atomic_store_explicit(&p->until, time + length, memory_order_relaxed);
}

/* ---- helpers ---- */

static void take_pieces(struct team *t, int thread) {
    for (;;) {
        int64_t piece = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (piece >= t->pieces) {
            return;
        }
        t->work(t->context, piece * t->count / t->pieces, (piece + 1) * t->count / t->pieces, thread);
    }
}

static int is_news(uint32_t state, uint32_t seen) {
    return (state & ENDING) || ((state & OPEN) && state / JOB != seen);
}

/* The state with a job other than `seen`, or at the end. */
static uint32_t await_job(struct team *t, uint32_t seen) {
    int64_t start = now(), last = start;
    uint32_t state;
    while (!is_on(&t->spinning, last) && last - start < HELPER_SPIN) {
        for (int i = 0; i < 32; i++) {
            state = atomic_load_explicit(&t->state, memory_order_acquire);
            if (is_news(state, seen)) {
                return state;
            }
            relax();
        }
        int64_t time = now();
        if (time - last > PUT_ASIDE) {
            begin_pause(&t->spinning, time);
        }
        last = time;
    }
    atomic_fetch_add(&t->sleepers, 1);
    while (!is_news(state = atomic_load(&t->state), seen)) {
        sleep_while(t, &t->state, state);
    }
    atomic_fetch_sub(&t->sleepers, 1);
    return state;
}

static void *help(void *argument) {
    struct helper *self = argument;
    struct team *t = self->team;
    uint32_t seen = UINT32_MAX;
    for (;;) {
        uint32_t state = await_job(t, seen);
        if (state & ENDING) {
            return NULL;
        }
        /* whoever has joined keeps the job from being replaced by the next one */
        if (!atomic_compare_exchange_strong(&t->state, &state, state + 1)) {
            continue;
        }
        seen = state / JOB;
        take_pieces(t, self->index);
        state = atomic_fetch_sub(&t->state, 1) - 1;
        if (!(state & HELPERS) && atomic_exchange(&t->caller_sleeps, 0)) {
            wake(t, &t->caller_sleeps, 1);
        }
    }
}

/* Signals are the host's: no helper takes one. */
static void start_helpers(struct team *t) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (t->num_helpers < t->size - 1) {
        struct helper *h = &t->helpers[t->num_helpers];
        h->team = t;
        h->index = t->num_helpers + 1;
        if (pthread_create(&h->thread, NULL, help, h)) {
            t->size = t->num_helpers + 1; /* the system gives no more */
            break;
        }
        t->num_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- the caller ---- */

/* Wait until no helper is in the job, which is closed. `began`: when the caller began its own share. */
static void await_helpers(struct team *t, int64_t began) {
    if (!(atomic_load(&t->state) & HELPERS)) {
        return;
    }
    int64_t ended = now(), time = ended;
    while (time - ended < CALLER_SPIN) {
        for (int i = 0; i < 32; i++) {
            if (!(atomic_load_explicit(&t->state, memory_order_acquire) & HELPERS)) {
                return;
            }
            relax();
        }
        time = now();
    }
    for (;;) {
        atomic_store(&t->caller_sleeps, 1);
        if (!(atomic_load(&t->state) & HELPERS)) {
            break;
        }
        sleep_while(t, &t->caller_sleeps, 1);
    }
    atomic_store(&t->caller_sleeps, 0);
    time = now();
    if (time - ended > STALL + (ended - began)) {
        t->stalled += time - ended;
        begin_pause(&t->sharing, time);
        begin_pause(&t->spinning, time);
    }
}

static void region(void *team) {
    struct team *t = team;
    take_pieces(t, t->thread_number());
}

static int can_share(struct team *t, int64_t time) {
    if (t == NULL || t->size < 2 || t->forks != forks || is_on(&t->sharing, time)) {
        return 0;
    }
    return !atomic_exchange(&t->busy, 1); /* a piece that wants to share, or another thread: it works alone */
}

int team_size(void) { return bound == NULL ? 1 : bound->size; }

void team_share(int64_t count, int64_t pieces, team_work *work, void *context) {
    struct team *t = bound;
    int64_t began = 0;
    if (count < 1) {
        return;
    }
    if (pieces < 2 || t == NULL || !can_share(t, began = now())) {
        work(context, 0, count, 0);
        return;
    }
    t->count = count;
    t->pieces = pieces;
    t->work = work;
    t->context = context;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    if (t->parallel != NULL) {
        t->parallel(region, t, (unsigned)t->size, 0);
        atomic_store(&t->busy, 0);
        return;
    }
    if (t->num_helpers < t->size - 1) {
        start_helpers(t);
    }
    uint32_t state = atomic_load_explicit(&t->state, memory_order_relaxed);
    atomic_store(&t->state, ((state / JOB + 1) * JOB) | OPEN);
    if (atomic_load(&t->sleepers)) {
        wake(t, &t->state, pieces - 1);
    }
    take_pieces(t, 0);
    atomic_fetch_and(&t->state, ~OPEN);
    await_helpers(t, began);
    atomic_store(&t->busy, 0);
}

/* ---- the functions Python calls ---- */

/* (threads) -> the address of a new team; its helpers start with its first work */
ROOTLET_FUNCTION(rootlet_team_open) {
    ARGUMENTS(1)
    int64_t size = integer_argument(args[0]);
    ARGUMENTS_END
    if (size < 1 || size > MAX_THREADS) {
        return PyErr_Format(PyExc_ValueError, "A team has 1 to %d threads, got %lld.", MAX_THREADS,
                            (long long)size);
    }
    pthread_once(&watched, watch_forks);
    struct team *t;
    size_t bytes = sizeof *t + (size_t)(size - 1) * sizeof *t->helpers;
    if (posix_memalign((void **)&t, 64, bytes)) {
        return PyErr_NoMemory();
    }
    memset(t, 0, bytes);
    t->size = (int)size;
    t->forks = forks;
#if !defined(__linux__)
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->changed, NULL);
#endif
    return PyLong_FromVoidPtr(t);
}

/* What is bound, as the arguments that bind it again. */
static PyObject *bound_before(void) {
    void *parallel = NULL, *number = NULL;
    if (bound != NULL) {
        memcpy(&parallel, &bound->parallel, sizeof parallel);
        memcpy(&number, &bound->thread_number, sizeof number);
    }
    return Py_BuildValue("(NNN)", PyLong_FromVoidPtr(bound), PyLong_FromVoidPtr(parallel),
                         PyLong_FromVoidPtr(number));
}

/* (address or 0, GOMP_parallel and omp_get_thread_num or 0) -> those before: the calling thread's kernels share
 * their work with this team, done by helpers or by OpenMP's threads */
ROOTLET_FUNCTION(rootlet_team_bind) {
    ARGUMENTS(3)
    struct team *t = pointer_argument(args[0]);
    void *parallel = pointer_argument(args[1]), *number = pointer_argument(args[2]);
    ARGUMENTS_END
    PyObject *before = bound_before();
    if (before == NULL) {
        return NULL;
    }
    bound = t;
    if (t != NULL) {
        memcpy(&t->parallel, &parallel, sizeof parallel);
        memcpy(&t->thread_number, &number, sizeof number);
    }
    return before;
}

/* (address) -> nanoseconds that callers waited for helpers that were kept off their cores */
ROOTLET_FUNCTION(rootlet_team_stalled) {
    ARGUMENTS(1)
    struct team *t = pointer_argument(args[0]);
    ARGUMENTS_END
    return PyLong_FromLongLong(t->stalled);
}

/* (address): end the helpers and free the team, which works for nobody now and is bound nowhere */
ROOTLET_FUNCTION(rootlet_team_close) {
    ARGUMENTS(1)
    struct team *t = pointer_argument(args[0]);
    ARGUMENTS_END
    if (t->forks == forks) {
        BEGIN_COMPUTE(1)
        atomic_fetch_or(&t->state, ENDING);
        wake(t, &t->state, t->num_helpers);
        for (int i = 0; i < t->num_helpers; i++) {
            pthread_join(t->helpers[i].thread, NULL);
        }
        END_COMPUTE
    }
    free(t);
    Py_RETURN_NONE;
}
