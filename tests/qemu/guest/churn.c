// Keeps memory and timers busy, and checks them: a guest that can say whether it survived a migration.
//
//   churn MIB THREADS SECONDS
//
// Each page belongs to one thread and holds its number, a generation and a pattern made from both. A round of a
// thread takes a page by chance, checks all of it, and writes it anew. Another thread looks at the clocks: none
// may go back, and the monotonic one and the boot clock must agree. A line each second; the exit status is 1 if
// anything was wrong.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t (*memory)[WORDS];
static uint64_t *generations;
static uint64_t pages, threads;
static volatile int over;
static uint64_t rounds, wrong, ticks, backwards;

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void fill(uint64_t page) {
    uint64_t seed = mix(page << 32 ^ generations[page]);
    for (int i = 0; i < WORDS; i++)
        memory[page][i] = seed + i * 0x100000001u;
}

static int good(uint64_t page) {
    uint64_t seed = mix(page << 32 ^ generations[page]);
    for (int i = 0; i < WORDS; i++)
        if (memory[page][i] != seed + i * 0x100000001u) {
            printf("== churn WRONG page %lu word %d: %016lx, not %016lx\n", page, i, memory[page][i],
                   seed + i * 0x100000001u);
            return 0;
        }
    return 1;
}

static void *dirty(void *argument) {
    uint64_t me = (uintptr_t)argument, chance = me;
    while (!over) {
        chance = mix(chance);
        uint64_t page = chance % (pages / threads) * threads + me;
        if (!good(page))
            __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        generations[page]++;
        fill(page);
        __atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

static void *clocks(void *argument) {
    (void)argument;
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, 2000000}, {0, 2000000}};
    timerfd_settime(timer, 0, &every, 0);
    int64_t monotonic = 0, real = 0;
    while (!over) {
        uint64_t expired;
        if (read(timer, &expired, 8) != 8)
            break;
        ticks++;
        int64_t m = now(CLOCK_MONOTONIC), r = now(CLOCK_REALTIME);
        if (m < monotonic || r < real) {
            printf("== churn WRONG clocks %ld %ld after %ld %ld\n", m, r, monotonic, real);
            backwards++;
        }
        monotonic = m;
        real = r;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    pages = strtoull(argv[1], 0, 0) << 8;
    threads = strtoull(argv[2], 0, 0);
    int64_t seconds = strtoll(argv[3], 0, 0);
    memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    generations = calloc(pages, sizeof *generations);
    if (memory == MAP_FAILED || !generations || !threads)
        return 2;
    for (uint64_t page = 0; page < pages; page++)
        fill(page);
    pthread_t t;
    for (uintptr_t i = 0; i < threads; i++)
        pthread_create(&t, 0, dirty, (void *)i);
    pthread_create(&t, 0, clocks, 0);
    int64_t start = now(CLOCK_MONOTONIC);
    for (int64_t second = 1; second <= seconds; second++) {
        struct timespec one = {1, 0};
        nanosleep(&one, 0);
        printf("== churn %ld s %ld ms real %ld rounds %lu ticks %lu wrong %lu backwards %lu\n", second,
               (now(CLOCK_MONOTONIC) - start) / 1000000, (long)time(0), rounds, ticks, wrong, backwards);
    }
    over = 1;
    return wrong || backwards;
}
