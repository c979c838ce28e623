// The CPU kernel of the selective scan and of the causal convolution: a plain C interface (the last section), loaded
// with ctypes. It knows nothing of Python or torch.
//
// One source for all instruction sets: what isa.h includes is compiled once per set, each in its namespace, and one is
// chosen when the library is loaded. Work is cut into tasks of one sample and one slice of channels; how many
// there are depends on the shapes only, and partial sums are added up in a fixed order, so results do not depend on the
// number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "args.h"

#define INLINE static inline __attribute__((always_inline))

namespace {

// Tokens per stored state: the backward keeps this many states of a few channels in the first-level cache.
constexpr int64_t CHUNK = 32;
// The same of a convolution that is not of 4 taps. Gradients reach back over all taps and are then computed twice, which
// a longer chunk makes rarer; this one still leaves half of the first-level cache.
constexpr int64_t WIDE_CHUNK = 96;
// How far ahead in a row to fetch, in floats: rows are too far apart for the processor to see the pattern.
constexpr int64_t PREFETCH = 32;
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

// Gradients of one direction's parameters, summed over a group of samples. E is the padded channels.
struct MixerSums {
    float *A, *D, *dt_bias;  // see ScanSums
    float* x_proj;           // (R + 2 N, E)
    float* dt_proj;          // (R, E)
    float* conv;             // (taps + 1, E)
};

// u and delta of one sample, (length, padded channels) each, and what the backward adds to them.
struct MixerScratch {
    float *u, *delta, *grad_u, *grad_delta;
    float* grad_projected;  // (length, R + 2 N)
    float *grad_B, *grad_C;  // (length, N) in scan order
    float* states;           // of the scan, and its carries
    float *grad_BC, *conv;   // see scan_backward and conv_backward
};

struct InstructionSet {
    int64_t width;
    void (*prepare_A)(const ScanArgs&, float*);
    void (*scan_forward)(const ScanArgs&, const float*, const Task&, float*);
    void (*scan_backward)(const ScanArgs&, const float*, const Task&, const ScanScratch&, const ScanSums&);
    void (*prepare_conv)(const ConvArgs&, float*);
    void (*conv_forward)(const ConvArgs&, const float*, const Task&);
    void (*conv_backward)(const ConvArgs&, const float*, const Task&, float*, float*);
    int64_t (*prepared_size)(const MixerArgs&);
    void (*prepare_mixer)(const MixerArgs&, int, float*);
    void (*mixer_forward)(const MixerArgs&, float* const[2], int64_t, const MixerScratch&);
    void (*mixer_backward)(const MixerArgs&, float* const[2], int64_t, const MixerScratch&, const MixerSums[2]);
    void (*norm_forward)(const NormArgs&, int64_t, int64_t);
    void (*norm_backward)(const NormArgs&, int64_t, int64_t, float*);
};

}  // namespace

// FORWARD_GROUP and BACKWARD_GROUP: states whose recurrences run side by side. Measured with AVX2; as
// many for the baseline's equal number of registers, and twice as many, not measured, for the 32 of AVX-512.

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

#include "work.h"

namespace {

const InstructionSet* chosen = &baseline::SET;

// What a thread works with on one sample of a mixer.
struct MixerMemory {
    Buffer buffer;
    MixerScratch scratch;

    explicit MixerMemory(const MixerArgs& args) {
        const int64_t L = args.length, N = args.states, E = padded(args.channels), P = args.rank + 2 * N;
        const int64_t sequence = L * E, sizes[] = {sequence,    sequence, sequence, sequence,
                                                   padded(L * P), padded(L * N), padded(L * N), E * N,
                                                   2 * CHUNK * N * MAX_WIDTH, (WIDE_CHUNK + args.taps) * MAX_WIDTH};
        int64_t total = 0;
        for (const int64_t size : sizes) total += size;
        buffer = allocate(total);
        float* at = buffer.get();
        float** const parts[] = {&scratch.u,      &scratch.delta,  &scratch.grad_u, &scratch.grad_delta, &scratch.grad_projected,
                                 &scratch.grad_B, &scratch.grad_C, &scratch.states, &scratch.grad_BC,    &scratch.conv};
        for (int i = 0; i < 10; ++i) *parts[i] = at, at += sizes[i];
    }
};

void prepare(const MixerArgs& args, Buffer prepared[2], float* at[2]) {
    for (int d = 0; d < args.count; ++d) {
        prepared[d] = allocate(chosen->prepared_size(args));
        at[d] = prepared[d].get();
        chosen->prepare_mixer(args, d, at[d]);
    }
}

// Sums of d loss / d A in the layout of prepare_A, to (channels, states); of log(-A) if so asked.
void write_grad_A(const float* sums, const float* prepared_A, bool A_is_log, int64_t channels, int64_t states, float* to) {
    const int64_t W = chosen->width;
    for (int64_t channel = 0; channel < channels; ++channel) {
        for (int64_t n = 0; n < states; ++n) {
            const int64_t from = channel / W * W * states + n * W + channel % W;
            // A itself, without its factor of log2(e)
            to[channel * states + n] = sums[from] * (A_is_log ? prepared_A[from] * 0.693147180559945309f : 1.0f);
        }
    }
}

}  // namespace

extern "C" {

int64_t dis_chunk() { return CHUNK; }

// What the Python side compares with its own structures before it calls anything else.
int64_t dis_abi() {
    return ABI << 32 | (sizeof(ScanArgs) + sizeof(ConvArgs) + sizeof(MixerArgs) + sizeof(NormArgs));
}

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
    const Buffer by_sample = allocate(std::max<int64_t>(args->batch, 1) * sample_sums);
    const Buffer by_slice = allocate(grid.tasks() * slice_sums);
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
    // Over samples: A, D and the bias, added to those of the first.
    float* total = by_sample.get();
    for (int64_t sample = 1; sample < args->batch; ++sample)
        for (int64_t i = 0; i < sample_sums; ++i) total[i] += total[sample * sample_sums + i];
    if (!args->batch) std::fill(total, total + sample_sums, 0.0f);
    write_grad_A(total, A.get(), args->A_is_log, args->channels, N, args->grad_A);
    if (args->grad_D) std::copy(total + width * N, total + width * N + args->channels, args->grad_D);
    if (args->grad_bias) std::copy(total + width * (N + 1), total + width * (N + 1) + args->channels, args->grad_bias);
}

void dis_conv_forward(const ConvArgs* args) {
    const Buffer prepared = allocate((args->taps + 1) * padded(args->channels));
    chosen->prepare_conv(*args, prepared.get());
    const Grid grid(args->batch, args->channels);
    const int64_t work = args->batch * args->length * args->channels * (12 + args->taps);
    for_each(grid.tasks(), useful_threads(args->threads, work), [&](auto next) {
        for (int64_t task; (task = next()) >= 0;) chosen->conv_forward(*args, prepared.get(), grid[task]);
    });
}

void dis_conv_backward(const ConvArgs* args) {
    const int64_t width = padded(args->channels), rows = args->taps + 1;
    const Buffer prepared = allocate(rows * width), by_sample = allocate(args->batch * rows * width);
    chosen->prepare_conv(*args, prepared.get());
    const Grid grid(args->batch, args->channels);
    const int64_t threads = useful_threads(args->threads, args->batch * args->length * args->channels * (24 + 2 * args->taps));
    for_each(grid.tasks(), threads, [&](auto next) {
        const Buffer scratch = allocate((WIDE_CHUNK + args->taps) * MAX_WIDTH);
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

void dis_mixer_forward(const MixerArgs* args) {
    Buffer prepared[2];
    float* prepared_at[2];
    prepare(*args, prepared, prepared_at);
    for_each(args->batch, args->threads, [&](auto next) {
        const MixerMemory memory(*args);
        for (int64_t sample; (sample = next()) >= 0;) chosen->mixer_forward(*args, prepared_at, sample, memory.scratch);
    });
}

void dis_mixer_backward(const MixerArgs* args) {
    Buffer prepared[2];
    float* prepared_at[2];
    prepare(*args, prepared, prepared_at);
    const int64_t N = args->states, E = args->channels, width = padded(E), R = args->rank, rows = R + 2 * N;
    // A group of samples shares its sums. How many groups there are does not depend on the number of threads.
    const int64_t groups = std::clamp<int64_t>(args->batch, 1, 16), sums_size = width * (N + 2 + rows + R + args->taps + 1);
    const Buffer memory = allocate(groups * 2 * sums_size);
    const auto sums_at = [&](int64_t group, int d) -> MixerSums {
        float *A = memory.get() + (group * 2 + d) * sums_size, *D = A + width * N, *x_proj = D + 2 * width;
        return {A, D, D + width, x_proj, x_proj + width * rows, x_proj + width * (rows + R)};
    };
    for_each(groups, args->threads, [&](auto next) {
        const MixerMemory memory(*args);
        for (int64_t group; (group = next()) >= 0;) {
            const MixerSums sums[2] = {sums_at(group, 0), sums_at(group, 1)};
            std::fill(sums[0].A, sums[0].A + 2 * sums_size, 0.0f);
            const int64_t end = (group + 1) * args->batch / groups;
            for (int64_t sample = group * args->batch / groups; sample < end; ++sample)
                chosen->mixer_backward(*args, prepared_at, sample, memory.scratch, sums);
        }
    });
    for (int64_t group = 1; group < groups; ++group) {
        float *total = memory.get(), *part = total + group * 2 * sums_size;
        for (int64_t i = 0; i < 2 * sums_size; ++i) total[i] += part[i];
    }
    for (int d = 0; d < args->count; ++d) {
        const DirectionArgs& to = args->directions[d];
        const MixerSums sums = sums_at(0, d);
        write_grad_A(sums.A, prepared_at[d], true, E, N, to.grad_A_log);
        std::copy(sums.D, sums.D + E, to.grad_D);
        std::copy(sums.dt_bias, sums.dt_bias + E, to.grad_dt_bias);
        for (int64_t p = 0; p < rows; ++p) std::copy(sums.x_proj + p * width, sums.x_proj + p * width + E, to.grad_x_proj + p * E);
        for (int64_t e = 0; e < E; ++e) {
            for (int64_t r = 0; r < R; ++r) to.grad_dt_proj[e * R + r] = sums.dt_proj[r * width + e];
            for (int64_t k = 0; k < args->taps; ++k) to.grad_conv_weight[e * args->taps + k] = sums.conv[k * width + e];
            to.grad_conv_bias[e] = sums.conv[args->taps * width + e];
        }
    }
}

void dis_norm_forward(const NormArgs* args) {
    constexpr int64_t ROWS = 64;
    const int64_t threads = useful_threads(args->threads, args->rows * args->channels);
    for_each((args->rows + ROWS - 1) / ROWS, threads, [&](auto next) {
        for (int64_t part; (part = next()) >= 0;)
            chosen->norm_forward(*args, part * ROWS, std::min(args->rows, (part + 1) * ROWS));
    });
}

void dis_norm_backward(const NormArgs* args) {
    const int64_t parts = std::min<int64_t>(args->rows, 16), width = padded(args->channels);
    const Buffer sums = allocate(parts * width);
    std::fill(sums.get(), sums.get() + parts * width, 0.0f);
    for_each(parts, useful_threads(args->threads, 2 * args->rows * args->channels), [&](auto next) {
        for (int64_t part; (part = next()) >= 0;) {
            const int64_t first = part * args->rows / parts, last = (part + 1) * args->rows / parts;
            chosen->norm_backward(*args, first, last, sums.get() + part * width);
        }
    });
    for (int64_t channel = 0; channel < args->channels; ++channel) {
        float sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += sums[part * width + channel];
        args->grad_weight[channel] = sum;
    }
}

}  // extern "C"
