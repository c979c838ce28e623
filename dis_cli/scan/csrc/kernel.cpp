// The CPU kernel of the selective scan and of the causal convolution: a plain C interface (the last section), loaded
// with ctypes. It knows nothing of Python or torch.
//
// One source for all instruction sets: vec.h, scan.h and conv.h are compiled once per set, each in its namespace, and
// one is chosen when the library is loaded. Work is cut into tasks of one sample and one slice of channels; how many
// there are depends on the shapes only, and partial sums are added up in a fixed order, so results do not depend on the
// number of threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "args.h"

#define INLINE static inline __attribute__((always_inline))

namespace {

// Tokens per stored state: the backward keeps this many states of a few channels in the first-level cache.
constexpr int64_t CHUNK = 32;
// Widest vector; arrays that all instruction sets share are padded to it.
constexpr int64_t MAX_WIDTH = 16;

constexpr int64_t padded(int64_t channels) { return (channels + MAX_WIDTH - 1) / MAX_WIDTH * MAX_WIDTH; }

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// One sample, and the channels from `begin` to before `end`.
struct Task {
    int64_t sample, begin, end;
};

// What a backward scan works with. Blocks are (states, vector width).
struct ScanScratch {
    float* carries;  // per block of the slice: exp(delta A) g of the token after the chunk
    float* grad_BC;  // of B and of C: (CHUNK, states, 2, vector width), lanes not yet summed
};

// Where a backward scan adds what is summed over samples or slices afterwards.
struct ScanSums {
    float* grad_A;              // of this sample: (blocks, states, vector width)
    float *grad_D, *grad_bias;  // of this sample: (padded channels)
    float *grad_B, *grad_C;     // of this sample and slice: (length, states), in scan order
};

struct InstructionSet {
    int64_t width;
    void (*prepare_A)(const ScanArgs&, float*);
    void (*scan_forward)(const ScanArgs&, const float*, const Task&, float*);
    void (*scan_backward)(const ScanArgs&, const float*, const Task&, const ScanScratch&, const ScanSums&);
    void (*prepare_conv)(const ConvArgs&, float*);
    void (*conv_forward)(const ConvArgs&, const float*, const Task&);
    void (*conv_backward)(const ConvArgs&, const float*, const Task&, float*, float*);
};

}  // namespace

// FORWARD_GROUP and BACKWARD_GROUP: states whose recurrences run side by side, measured per instruction set.

namespace baseline {
#define WIDTH 4
#define FORWARD_GROUP 2
#define BACKWARD_GROUP 2
#include "isa.h"
#undef WIDTH
#undef FORWARD_GROUP
#undef BACKWARD_GROUP
}  // namespace baseline

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define WIDTH 8
#define FORWARD_GROUP 2
#define BACKWARD_GROUP 2
#include "isa.h"
#undef WIDTH
#undef FORWARD_GROUP
#undef BACKWARD_GROUP
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma")
#endif
namespace avx512 {
#define WIDTH 16
#define FORWARD_GROUP 4
#define BACKWARD_GROUP 4
#include "isa.h"
#undef WIDTH
#undef FORWARD_GROUP
#undef BACKWARD_GROUP
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

const InstructionSet* chosen = &baseline::SET;

// GOMP_parallel of the OpenMP runtime that torch has loaded; null: serial. Linking to one would load a second.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel parallel = nullptr;

// Calls work(task, index) for every task of the grid, each once, on up to `threads` threads.
template <typename Work>
void for_each(int64_t tasks, int64_t threads, const Work& work) {
    struct Shared {
        std::atomic<int64_t> next;
        int64_t tasks;
        const Work& work;
    } shared{{0}, tasks, work};
    const auto run = [](void* data) {
        Shared& shared = *static_cast<Shared*>(data);
        shared.work([&shared] {
            const int64_t task = shared.next.fetch_add(1, std::memory_order_relaxed);
            return task < shared.tasks ? task : -1;
        });
    };
    threads = std::min(threads, tasks);
    if (threads > 1 && parallel)
        parallel(run, &shared, static_cast<unsigned>(threads), 0);
    else
        run(&shared);
}

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float[], Free>;

// Uninitialised floats on a cache line of their own.
Buffer allocate(int64_t count) {
    const int64_t bytes = (std::max<int64_t>(count, 1) * 4 + 63) / 64 * 64;
    return Buffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

// The grid of tasks: slices are as wide as leaves this many tasks, but not too narrow to use whole cache lines.
struct Grid {
    int64_t samples, channels, slice, slices;

    Grid(int64_t samples, int64_t channels) : samples(samples), channels(channels) {
        constexpr int64_t TASKS = 64, NARROWEST = 64;
        slice = padded((samples * channels + TASKS - 1) / TASKS);
        slice = std::min(std::max(slice, NARROWEST), padded(channels));
        slices = slice ? (channels + slice - 1) / slice : 0;
    }
    int64_t tasks() const { return samples * slices; }
    Task operator[](int64_t index) const {
        const int64_t begin = index % slices * slice;
        return {index / slices, begin, std::min(begin + slice, channels)};
    }
};

// Threads pay off from about this many multiply-adds a thread.
int64_t useful_threads(int64_t threads, int64_t work) { return std::min(threads, 1 + work / 200000); }

}  // namespace

extern "C" {

int64_t dis_chunk() { return CHUNK; }

void dis_use_parallel(Parallel gomp_parallel) { parallel = gomp_parallel; }

// 1 when this processor has the instruction set ("baseline", "avx2", "avx512"), which is then used; else 0.
int32_t dis_use_isa(const char* name) {
    const auto named = [name](const char* other) { return std::strcmp(name, other) == 0; };
    if (named("baseline")) {
        chosen = &baseline::SET;
        return 1;
    }
#ifdef __x86_64__
    if (named("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        chosen = &avx2::SET;
        return 1;
    }
    if (named("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
        chosen = &avx512::SET;
        return 1;
    }
#endif
    return 0;
}

void dis_scan_forward(const ScanArgs* args) {
    const Buffer A = allocate(padded(args->channels) * args->states);
    chosen->prepare_A(*args, A.get());
    const Grid grid(args->batch, args->channels);
    const int64_t work = args->batch * args->length * args->channels * args->states;
    for_each(grid.tasks(), useful_threads(args->threads, work), [&](auto next) {
        const Buffer states = allocate(grid.slice * args->states);
        for (int64_t task; (task = next()) >= 0;) chosen->scan_forward(*args, A.get(), grid[task], states.get());
    });
}

void dis_scan_backward(const ScanArgs* args) {
    const int64_t N = args->states, L = args->length, width = padded(args->channels);
    const Buffer A = allocate(width * N);
    chosen->prepare_A(*args, A.get());
    const Grid grid(args->batch, args->channels);
    const int64_t threads = useful_threads(args->threads, 2 * args->batch * L * args->channels * N);
    const int64_t sample_sums = width * (N + 2), slice_sums = 2 * L * N;
    const Buffer by_sample = allocate(args->batch * sample_sums), by_slice = allocate(grid.tasks() * slice_sums);
    for_each(grid.tasks(), threads, [&](auto next) {
        const Buffer carries = allocate(grid.slice * N), rows = allocate(2 * CHUNK * N * MAX_WIDTH);
        const ScanScratch scratch{carries.get(), rows.get()};
        for (int64_t index; (index = next()) >= 0;) {
            const Task task = grid[index];
            float *sample = by_sample.get() + task.sample * sample_sums, *slice = by_slice.get() + index * slice_sums;
            const ScanSums sums{sample, sample + width * N, sample + width * (N + 1), slice, slice + L * N};
            const int64_t end = task.end == args->channels ? width : task.end;
            std::fill(sums.grad_A + task.begin * N, sums.grad_A + end * N, 0.0f);
            std::fill(sums.grad_D + task.begin, sums.grad_D + end, 0.0f);
            std::fill(sums.grad_bias + task.begin, sums.grad_bias + end, 0.0f);
            chosen->scan_backward(*args, A.get(), task, scratch, sums);
        }
    });
    // Over slices: B and C, a sample at a time.
    for_each(args->batch, threads, [&](auto next) {
        for (int64_t sample; (sample = next()) >= 0;) {
            for (int64_t t = 0; t < L; ++t) {
                const int64_t position = args->reverse ? L - 1 - t : t;
                float* to_B = args->grad_B.data + sample * args->grad_B.batch_stride + position * args->grad_B.row_stride;
                float* to_C = args->grad_C.data + sample * args->grad_C.batch_stride + position * args->grad_C.row_stride;
                for (int64_t n = 0; n < N; ++n) {
                    float sum_B = 0, sum_C = 0;
                    for (int64_t slice = 0; slice < grid.slices; ++slice) {
                        const float* from = by_slice.get() + (sample * grid.slices + slice) * slice_sums + t * N + n;
                        sum_B += from[0];
                        sum_C += from[L * N];
                    }
                    to_B[n] = sum_B;
                    to_C[n] = sum_C;
                }
            }
        }
    });
    // Over samples: A, D and the bias, a block of channels at a time.
    const int64_t W = chosen->width;
    for_each((args->channels + W - 1) / W, threads, [&](auto next) {
        const Buffer sums = allocate(W * (N + 2));
        for (int64_t block; (block = next()) >= 0;) {
            const int64_t first = block * W, count = std::min(W, args->channels - first);
            std::fill(sums.get(), sums.get() + W * (N + 2), 0.0f);
            for (int64_t sample = 0; sample < args->batch; ++sample) {
                const float* from = by_sample.get() + sample * sample_sums;
                for (int64_t i = 0; i < W * N; ++i) sums[i] += from[first * N + i];
                for (int64_t i = 0; i < W; ++i) sums[W * N + i] += from[width * N + first + i];
                for (int64_t i = 0; i < W; ++i) sums[W * (N + 1) + i] += from[width * (N + 1) + first + i];
            }
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t n = 0; n < N; ++n) {
                    const int64_t at = (first + i) * N + n;
                    args->grad_A[at] = sums[n * W + i] * (args->log_A ? A[first * N + n * W + i] * 0.693147180559945309f : 1.0f);
                }
                if (args->grad_D) args->grad_D[first + i] = sums[W * N + i];
                if (args->grad_bias) args->grad_bias[first + i] = sums[W * (N + 1) + i];
            }
        }
    });
}

void dis_conv_forward(const ConvArgs* args) {
    const Buffer prepared = allocate((args->taps + 1) * padded(args->channels));
    chosen->prepare_conv(*args, prepared.get());
    const Grid grid(args->batch, args->channels);
    const int64_t work = args->batch * args->length * args->channels * 16;
    for_each(grid.tasks(), useful_threads(args->threads, work), [&](auto next) {
        for (int64_t task; (task = next()) >= 0;) chosen->conv_forward(*args, prepared.get(), grid[task]);
    });
}

void dis_conv_backward(const ConvArgs* args) {
    const int64_t width = padded(args->channels), rows = args->taps + 1;
    const Buffer prepared = allocate(rows * width), by_sample = allocate(args->batch * rows * width);
    chosen->prepare_conv(*args, prepared.get());
    const Grid grid(args->batch, args->channels);
    const int64_t threads = useful_threads(args->threads, args->batch * args->length * args->channels * 32);
    for_each(grid.tasks(), threads, [&](auto next) {
        const Buffer scratch = allocate((CHUNK + args->taps) * MAX_WIDTH);
        for (int64_t index; (index = next()) >= 0;) {
            const Task task = grid[index];
            float* sums = by_sample.get() + task.sample * rows * width;
            const int64_t end = task.end == args->channels ? width : task.end;
            for (int64_t k = 0; k < rows; ++k) std::fill(sums + k * width + task.begin, sums + k * width + end, 0.0f);
            chosen->conv_backward(*args, prepared.get(), task, scratch.get(), sums);
        }
    });
    for (int64_t channel = 0; channel < args->channels; ++channel) {
        for (int64_t k = 0; k < rows; ++k) {
            float sum = 0;
            for (int64_t sample = 0; sample < args->batch; ++sample)
                sum += by_sample[(sample * rows + k) * width + channel];
            (k < args->taps ? args->grad_weight[channel * args->taps + k] : args->grad_bias[channel]) = sum;
        }
    }
}

}  // extern "C"
