/* The threads of a parallel region: a barrier, and the share of each thread.

   OpenMP starts the threads; without OpenMP there is one. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#ifdef __x86_64__
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() ((void)0)
#endif

enum { SPIN_LIMIT = 3000 /* about ten microseconds */ };

#define BARRIER_INITIALIZER {.lock = PTHREAD_MUTEX_INITIALIZER, .next = PTHREAD_COND_INITIALIZER}

typedef struct {
    atomic_int arrived, round;
    pthread_mutex_t lock;
    pthread_cond_t next;
} Barrier;

/* Wait until all threads arrive: spin for some microseconds, then sleep. OpenMP's barrier spins for
   milliseconds, which on a busy machine keeps the other threads from running. */
static void barrier_wait(Barrier *barrier) {
    int round = atomic_load(&barrier->round);
    if (atomic_fetch_add(&barrier->arrived, 1) + 1 == omp_get_num_threads()) {
        atomic_store(&barrier->arrived, 0);
        pthread_mutex_lock(&barrier->lock);
        atomic_fetch_add(&barrier->round, 1);
        pthread_cond_broadcast(&barrier->next);
        pthread_mutex_unlock(&barrier->lock);
        return;
    }
    for (int i = 0; i < SPIN_LIMIT; i++) {
        if (atomic_load(&barrier->round) != round) return;
        RELAX();
    }
    pthread_mutex_lock(&barrier->lock);
    while (atomic_load(&barrier->round) == round) pthread_cond_wait(&barrier->next, &barrier->lock);
    pthread_mutex_unlock(&barrier->lock);
}

/* The range of `count` items that the calling thread works on. */
static void thread_range(int64_t count, int64_t *begin, int64_t *end) {
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    *begin = count * thread / threads;
    *end = count * (thread + 1) / threads;
}
