/*
 * What a program in C can do wrong, and how the library answers.
 *
 * Arguments: a model (`small` of the samples of lowbit-runtime), a file that is none, a path where no file is. The program prints the
 * first check that fails and ends with 1.
 */

#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "lowbit.h"

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            const char *last = lowbit_last_error();                                         \
            fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #condition, last);   \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/* A call has a status, and the message of the last error has the reason. */
#define CHECK_FAILS(call, expected, reason)                       \
    do {                                                          \
        CHECK((call) == (expected));                              \
        CHECK(strstr(lowbit_last_error(), (reason)) != NULL);     \
    } while (0)

enum { N_VALUES = 3 * 6 * 6, N_OUTPUTS = 4, N_CALLERS = 4, N_RUNS = 50 };

/* Threads of this process; 0 where the system has no list of them. */
static size_t n_threads_now(void)
{
    DIR *tasks = opendir("/proc/self/task");
    size_t n = 0;
    if (tasks == NULL) {
        return 0;
    }
    for (struct dirent *task = readdir(tasks); task != NULL; task = readdir(tasks)) {
        n += task->d_name[0] != '.';
    }
    closedir(tasks);
    return n;
}

/* Whether there are `expected` threads, at the latest in five seconds: the system lists a thread for a moment after its end. */
static int has_threads(size_t expected)
{
    for (int tries = 0; tries < 500; tries++) {
        size_t n = n_threads_now();
        if (n == expected || n == 0) {
            return 1;
        }
        struct timespec moment = {0, 10 * 1000 * 1000};
        nanosleep(&moment, NULL);
    }
    return 0;
}

static void fill(float *image, size_t seed)
{
    for (size_t i = 0; i < N_VALUES; i++) {
        image[i] = (float)((i + seed) * 37 % 101) / 25.0f - 2.0f;
    }
}

struct caller {
    const lowbit_model *model;
    float image[N_VALUES];
    float expected[N_OUTPUTS];
};

/* Runs the model many times. Its answer is always the same, and other threads do not change the last error of this one. */
static void *call_often(void *argument)
{
    struct caller *caller = argument;
    CHECK(strcmp(lowbit_last_error(), "") == 0);
    for (int i = 0; i < N_RUNS; i++) {
        float logits[N_OUTPUTS];
        CHECK(lowbit_model_run(caller->model, caller->image, 1, logits, N_OUTPUTS) == LOWBIT_STATUS_OK);
        CHECK(memcmp(logits, caller->expected, sizeof logits) == 0);
    }
    CHECK(strcmp(lowbit_last_error(), "") == 0);
    return NULL;
}

static void check_arguments(const char *path, const char *garbage, const char *missing)
{
    static char nothing;
    lowbit_model *model = (lowbit_model *)&nothing;

    CHECK(strcmp(lowbit_last_error(), "") == 0);
    CHECK_FAILS(lowbit_model_load(missing, 1, &model), LOWBIT_STATUS_UNREADABLE, missing);
    CHECK(model == NULL);
    CHECK_FAILS(lowbit_model_load(garbage, 1, &model), LOWBIT_STATUS_INVALID_MODEL,
                "expected a packed model");
    CHECK(strstr(lowbit_last_error(), garbage) != NULL);
    CHECK_FAILS(lowbit_model_load(".", 1, &model), LOWBIT_STATUS_INVALID_MODEL, "no regular file");
    CHECK_FAILS(lowbit_model_load("", 1, &model), LOWBIT_STATUS_UNREADABLE, "model");
    CHECK_FAILS(lowbit_model_load("\xff", 1, &model), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`path` is not UTF-8");
    CHECK_FAILS(lowbit_model_load(NULL, 1, &model), LOWBIT_STATUS_INVALID_ARGUMENT, "`path` is null");
    CHECK_FAILS(lowbit_model_load(path, 1, NULL), LOWBIT_STATUS_INVALID_ARGUMENT, "`model` is null");
    CHECK_FAILS(lowbit_model_load(path, 1025, &model), LOWBIT_STATUS_INVALID_ARGUMENT,
                "expected at most 1024");
    CHECK_FAILS(lowbit_model_load(path, 1, (lowbit_model **)((char *)&model + 1)), LOWBIT_STATUS_INVALID_ARGUMENT,
                "no multiple");

    CHECK_FAILS(lowbit_model_from_bytes("none", 4, 1, &model), LOWBIT_STATUS_INVALID_MODEL,
                "4 bytes in memory");
    CHECK_FAILS(lowbit_model_from_bytes("", 0, 1, &model), LOWBIT_STATUS_INVALID_MODEL, "0 bytes");
    CHECK_FAILS(lowbit_model_from_bytes(NULL, 4, 1, &model), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`bytes` is null");
    CHECK_FAILS(lowbit_model_from_bytes("none", (size_t)-1, 1, &model), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`n_bytes` is");
    CHECK_FAILS(lowbit_model_from_bytes("none", 4, 1, NULL), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`model` is null");

    CHECK(lowbit_model_info(NULL) == NULL);
    CHECK(strstr(lowbit_last_error(), "`model` is null") != NULL);
    lowbit_model_free(NULL);
    CHECK(has_threads(1));
}

/* Where the system has no room for more threads, none are left of those that were started. */
static void check_too_many_threads(const char *path)
{
    struct rlimit before;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    /* 3 GB of addresses, where the stacks of so many threads take 8. */
    struct rlimit low = {(rlim_t)3 << 30, before.rlim_max};
    CHECK(setrlimit(RLIMIT_AS, &low) == 0);
    lowbit_model *model = NULL;
    lowbit_status status = lowbit_model_load(path, LOWBIT_MAX_THREADS, &model);
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    /* Not all systems have the limit. */
    if (n_threads_now() > 0) {
        CHECK_FAILS(status, LOWBIT_STATUS_NO_THREADS, "failed to start 1024 threads: ");
        CHECK(model == NULL);
    }
    lowbit_model_free(model);
    CHECK(has_threads(1));
}

static void check_runs(const lowbit_model *model)
{
    float images[2 * N_VALUES + 1];
    float logits[2 * N_OUTPUTS];
    float one[N_OUTPUTS];
    fill(images, 0);
    fill(images + N_VALUES, 5);

    /* Images do not depend on each other; no image has no logits. */
    CHECK(lowbit_model_run(model, images, 2, logits, 2 * N_OUTPUTS) == LOWBIT_STATUS_OK);
    CHECK(lowbit_model_run(model, images + N_VALUES, 1, one, N_OUTPUTS) == LOWBIT_STATUS_OK);
    CHECK(memcmp(one, logits + N_OUTPUTS, sizeof one) == 0);
    CHECK(lowbit_model_run(model, NULL, 0, NULL, 0) == LOWBIT_STATUS_OK);

    CHECK_FAILS(lowbit_model_run(NULL, images, 1, logits, N_OUTPUTS), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`model`");
    CHECK_FAILS(lowbit_model_run(model, NULL, 1, logits, N_OUTPUTS), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`images`");
    CHECK_FAILS(lowbit_model_run(model, images, 1, NULL, N_OUTPUTS), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`logits`");
    CHECK_FAILS(lowbit_model_run(model, (float *)((char *)images + 1), 1, logits, N_OUTPUTS),
                LOWBIT_STATUS_INVALID_ARGUMENT, "`images` is at");
    CHECK_FAILS(lowbit_model_run(model, images, 2, logits, N_OUTPUTS), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`n_logits` is 4, expected 8: 4 for each of 2 images");
    CHECK_FAILS(lowbit_model_run(model, images, 0, logits, N_OUTPUTS), LOWBIT_STATUS_INVALID_ARGUMENT,
                "expected 0");
    /* So many values that their number, or that of their bytes, does not fit a size_t. */
    CHECK_FAILS(lowbit_model_run(model, images, (size_t)-1, logits, N_OUTPUTS), LOWBIT_STATUS_INVALID_ARGUMENT,
                "`n_images` is");
    CHECK_FAILS(lowbit_model_run(model, images, (size_t)-1 / 200, logits, (size_t)-1 / 200 * N_OUTPUTS),
                LOWBIT_STATUS_INVALID_ARGUMENT, "`n_images` is");

    /* What fails writes nothing. */
    memcpy(logits, one, sizeof one);
    images[7] = NAN;
    CHECK_FAILS(lowbit_model_run(model, images, 1, logits, N_OUTPUTS), LOWBIT_STATUS_INVALID_IMAGES,
                "(value 7)");
    CHECK(memcmp(one, logits, sizeof one) == 0);
}

static void check_info(const lowbit_model *model, size_t n_threads)
{
    static const char *const names[N_OUTPUTS] = {"one", "two", "three", "four"};
    const lowbit_info *info = lowbit_model_info(model);
    CHECK(info != NULL && info == lowbit_model_info(model));
    CHECK(strcmp(info->name, "small") == 0);
    CHECK(info->channels == 3 && info->height == 6 && info->width == 6);
    CHECK(info->n_outputs == N_OUTPUTS && info->resize == 0 && info->n_threads == n_threads);
    for (size_t i = 0; i < info->channels; i++) {
        CHECK(info->mean[i] == 0.5f && info->std[i] == 0.25f);
    }
    for (size_t i = 0; i < info->n_outputs; i++) {
        CHECK(strcmp(info->classes[i], names[i]) == 0);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    check_arguments(argv[1], argv[2], argv[3]);
    check_too_many_threads(argv[1]);

    /* A model has the threads that it is given, and no others. */
    lowbit_model *model = NULL;
    CHECK(lowbit_model_load(argv[1], 3, &model) == LOWBIT_STATUS_OK);
    check_info(model, 3);
    check_runs(model);
    CHECK(has_threads(1 + 3));

    /* Several threads share it. */
    static struct caller callers[N_CALLERS];
    pthread_t threads[N_CALLERS];
    for (size_t i = 0; i < N_CALLERS; i++) {
        callers[i].model = model;
        fill(callers[i].image, i);
        CHECK(lowbit_model_run(model, callers[i].image, 1, callers[i].expected, N_OUTPUTS) == LOWBIT_STATUS_OK);
    }
    for (size_t i = 0; i < N_CALLERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, call_often, &callers[i]) == 0);
    }
    for (size_t i = 0; i < N_CALLERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    lowbit_model_free(model);
    CHECK(has_threads(1));

    /* The bytes of a file are a model too, and not needed once it is read. */
    FILE *file = fopen(argv[1], "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    long n_bytes = ftell(file);
    CHECK(n_bytes > 0 && fseek(file, 0, SEEK_SET) == 0);
    char *bytes = malloc((size_t)n_bytes);
    CHECK(bytes != NULL && fread(bytes, 1, (size_t)n_bytes, file) == (size_t)n_bytes);
    fclose(file);
    CHECK_FAILS(lowbit_model_from_bytes(bytes, (size_t)n_bytes - 1, 1, &model), LOWBIT_STATUS_INVALID_MODEL,
                "model");
    CHECK(lowbit_model_from_bytes(bytes, (size_t)n_bytes, 1, &model) == LOWBIT_STATUS_OK);
    memset(bytes, 0, (size_t)n_bytes);
    free(bytes);
    check_info(model, 1);
    for (size_t i = 0; i < N_CALLERS; i++) {
        float logits[N_OUTPUTS];
        CHECK(lowbit_model_run(model, callers[i].image, 1, logits, N_OUTPUTS) == LOWBIT_STATUS_OK);
        CHECK(memcmp(logits, callers[i].expected, sizeof logits) == 0);
    }
    lowbit_model_free(model);

    CHECK(lowbit_model_load(argv[1], 0, &model) == LOWBIT_STATUS_OK);
    CHECK(lowbit_model_info(model)->n_threads > 0);
    lowbit_model_free(model);
    return 0;
}
