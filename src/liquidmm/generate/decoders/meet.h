/* The threads of a parallel region, and a place where they wait for one another.

   Contract: OpenMP starts the threads, where there is any; without it there is one. */

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

enum { LOOKS = 3000 /* while awake: some ten microseconds */ };

#define PLACE {.lock = PTHREAD_MUTEX_INITIALIZER, .next = PTHREAD_COND_INITIALIZER}

/* Where threads wait for one another. */
typedef struct {
    atomic_int here, rounds;
    pthread_mutex_t lock;
    pthread_cond_t next;
} Place;

/* Wait until all threads are here, awake for some microseconds and then asleep. OpenMP's barrier
   stays awake for milliseconds, which on a busy machine keeps the other threads from running. */
static void meet(Place *place) {
    int round = atomic_load(&place->rounds);
    if (atomic_fetch_add(&place->here, 1) + 1 == omp_get_num_threads()) {
        atomic_store(&place->here, 0);
        pthread_mutex_lock(&place->lock);
        atomic_fetch_add(&place->rounds, 1);
        pthread_cond_broadcast(&place->next);
        pthread_mutex_unlock(&place->lock);
        return;
    }
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load(&place->rounds) != round) return;
        RELAX();
    }
    pthread_mutex_lock(&place->lock);
    while (atomic_load(&place->rounds) == round) pthread_cond_wait(&place->next, &place->lock);
    pthread_mutex_unlock(&place->lock);
}

/* Where the calling thread's share of `count` things begins and ends. */
static void share(int64_t count, int64_t *begin, int64_t *end) {
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    *begin = count * thread / threads;
    *end = count * (thread + 1) / threads;
}
