/* As much of NVIDIA's management library as is asked for telemetry: two GPUs with fixed figures.
   Signatures: https://docs.nvidia.com/deploy/nvml-api/ */

#include <stdio.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct { int index; } *nvmlDevice_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;

static struct { int index; } gpus[2] = {{0}, {1}};

nvmlReturn_t nvmlInit_v2(void) { return 0; }
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return 0; }
nvmlReturn_t nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(nvmlReturn_t result) { return "stand-in"; }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index > 1) return 2;
    *device = (nvmlDevice_t)&gpus[index];
    return 0;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int size) {
    snprintf(text, size, "GPU-%d0000000-0000-0000-0000-000000000000", device->index);
    return 0;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int size) {
    snprintf(text, size, "Stand-in %d", device->index);
    return 0;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *found) {
    if (device->index == 1) return 3; /* not supported, as of a part of a GPU */
    found->gpu = 73;
    found->memory = 10;
    return 0;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *found) {
    found->total = 48ull << 30;
    found->used = (device->index + 1ull) << 30;
    found->free = found->total - found->used;
    return 0;
}
