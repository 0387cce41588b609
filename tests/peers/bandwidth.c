/* Plain read bandwidth of main memory: sums of a buffer far larger than the caches, with n threads.
 * Usage: bandwidth THREADS SECONDS; prints GB/s (1e9 bytes), the best of the passes, which nothing disturbed most. Every other
 * pass fetches ahead: some CPUs read faster so, some slower. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define BYTES ((size_t)512 << 20) /* for each thread */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct part {
    const uint64_t *data;
    double seconds; /* how long to go on */
    double best;    /* bytes a second */
    uint64_t sum;
};

static uint64_t pass(const uint64_t *data, int fetch)
{
    const size_t words = BYTES / sizeof(uint64_t);
    uint64_t sums[32] = {0}, sum = 0;
    if (fetch)
        for (size_t i = 0; i < words; i += 32) {
            for (size_t j = 0; j < 32; j += 8) __builtin_prefetch(data + i + j + 512);
            for (size_t j = 0; j < 32; j++) sums[j] += data[i + j];
        }
    else
        for (size_t i = 0; i < words; i += 32)
            for (size_t j = 0; j < 32; j++) sums[j] += data[i + j];
    for (size_t j = 0; j < 32; j++) sum += sums[j];
    return sum;
}

static void *read_part(void *argument)
{
    struct part *part = argument;
    const double end = now() + part->seconds;
    int fetch = 0;
    do {
        const double start = now();
        part->sum += pass(part->data, fetch);
        fetch = !fetch;
        const double rate = (double)BYTES / (now() - start);
        if (rate > part->best) part->best = rate;
    } while (now() < end);
    return NULL;
}

int main(int argc, char **argv)
{
    const int threads = argc == 3 ? atoi(argv[1]) : 0;
    const double seconds = argc == 3 ? atof(argv[2]) : 0;
    if (threads < 1 || threads > 1024 || seconds <= 0) {
        fprintf(stderr, "usage: bandwidth THREADS SECONDS\n");
        return 2;
    }
    struct part *parts = calloc((size_t)threads, sizeof *parts);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    if (parts == NULL || ids == NULL) return 1;
    for (int i = 0; i < threads; i++) {
        void *data = mmap(NULL, BYTES + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) return 1;
        madvise(data, BYTES, MADV_HUGEPAGE);
        memset(data, i + 1, BYTES + 4096);
        parts[i] = (struct part){.data = data, .seconds = seconds};
    }
    for (int i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, read_part, &parts[i]) != 0) return 1;
    double total = 0;
    uint64_t sum = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        total += parts[i].best;
        sum += parts[i].sum;
    }
    /* The sum is used, so that no compiler leaves the reading out. */
    printf("%.2f%s\n", total / 1e9, sum == 1 ? " " : "");
    return 0;
}
