/*
 * Runs a packed model and prints the most probable class of each image and its logits.
 *
 *     predict MODEL.lowbit [IMAGES]
 *
 * IMAGES is a file of 32-bit floats in the byte order of the machine, [n, channels, height, width], normalized. Without it, the model is
 * run on one made-up image.
 */

#include <stdio.h>
#include <stdlib.h>

#include "lowbit.h"

/* Values of no meaning, the same in each run. */
static float *made_up_image(size_t n_values)
{
    float *image = malloc(n_values * sizeof *image);
    if (image == NULL) {
        fprintf(stderr, "predict: no memory for an image\n");
        return NULL;
    }
    for (size_t i = 0; i < n_values; i++) {
        image[i] = (float)(i * 7919 % 255) / 64.0f - 2.0f;
    }
    return image;
}

/* Reads images of `n_values` values each, and counts them. */
static float *read_images(const char *path, size_t n_values, size_t *n_images)
{
    size_t image_bytes = n_values * sizeof(float);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return NULL;
    }
    long n_bytes = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (n_bytes <= 0 || (size_t)n_bytes % image_bytes != 0) {
        fprintf(stderr, "%s: %ld bytes, expected a multiple of %zu\n", path, n_bytes, image_bytes);
        fclose(file);
        return NULL;
    }
    *n_images = (size_t)n_bytes / image_bytes;
    float *images = malloc((size_t)n_bytes);
    rewind(file);
    if (images == NULL || fread(images, image_bytes, *n_images, file) != *n_images) {
        fprintf(stderr, "%s: its %ld bytes cannot be read\n", path, n_bytes);
        free(images);
        images = NULL;
    }
    fclose(file);
    return images;
}

static void print_prediction(const lowbit_info *info, size_t image, const float *logits)
{
    size_t best = 0;
    for (size_t i = 1; i < info->n_outputs; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    printf("image %zu: class %zu%s%s\n", image, best, info->classes ? ", " : "",
           info->classes ? info->classes[best] : "");
    for (size_t i = 0; i < info->n_outputs; i++) {
        /* Nine digits tell every float from its neighbors. */
        printf("  %.9g%s%s\n", (double)logits[i], info->classes ? "  " : "",
               info->classes ? info->classes[i] : "");
    }
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: predict MODEL.lowbit [IMAGES]\n");
        return 2;
    }

    /* 0: as many threads as there are processors. */
    lowbit_model *model = NULL;
    if (lowbit_model_load(argv[1], 0, &model) != LOWBIT_STATUS_OK) {
        fprintf(stderr, "predict: %s\n", lowbit_last_error());
        return 1;
    }
    const lowbit_info *info = lowbit_model_info(model);
    printf("%s: images of %zux%zux%zu, %zu outputs; lowbit %s on %zu threads\n", info->name, info->channels,
           info->height, info->width, info->n_outputs, lowbit_version(), info->n_threads);

    int exit_code = 1;
    size_t n_values = info->channels * info->height * info->width;
    size_t n_images = 1;
    float *images = argc == 3 ? read_images(argv[2], n_values, &n_images) : made_up_image(n_values);
    size_t n_logits = n_images * info->n_outputs;
    float *logits = malloc(n_logits * sizeof *logits);
    if (images == NULL) {
        /* The reason is printed above. */
    } else if (logits == NULL) {
        fprintf(stderr, "predict: no memory for %zu logits\n", n_logits);
    } else if (lowbit_model_run(model, images, n_images, logits, n_logits) != LOWBIT_STATUS_OK) {
        fprintf(stderr, "predict: %s\n", lowbit_last_error());
    } else {
        for (size_t image = 0; image < n_images; image++) {
            print_prediction(info, image, logits + image * info->n_outputs);
        }
        exit_code = 0;
    }

    free(logits);
    free(images);
    lowbit_model_free(model);
    return exit_code;
}
