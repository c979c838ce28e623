// The arguments of the kernel's functions, as the Python side lays them out (dis_cli/scan/engines/cpu/kernel.py).
//
// All arrays are float32. Sequences are (batch, length, channels) with contiguous channels and any stride between
// tokens and between samples, in elements: slices of a wider array need no copy. "Scan order" is the order of the
// tokens, or the opposite one when `reverse` is set.
#pragma once

#include <cstdint>

// Counts up, here and in kernel_args.py, when an argument's meaning or bounds change and no structure's size does.
constexpr int64_t ABI = 1;

struct Sequence {
    float* data;  // null: absent
    int64_t batch_stride;
    int64_t row_stride;
};

struct ScanArgs {
    int64_t batch, length, channels, states;
    int64_t threads;
    int64_t reverse;         // scan from the last token to the first
    int64_t softplus;        // delta goes through softplus, after its bias
    int64_t A_is_log;           // A holds log(-A), and grad_A is the gradient of that
    int64_t accumulate_out;  // forward: add what `out` holds before the gate
    int64_t accumulate_z;    // backward: add to what `grad_z` holds
    Sequence u, delta, B, C, z;
    const float* A;           // (channels, states)
    const float* D;           // (channels), or null
    const float* delta_bias;  // (channels), or null
    float* ends;              // (batch, chunks - 1, states, channels): h after each chunk but the last; or null
    Sequence out;             // forward
    Sequence grad_out;        // backward, this and all below
    Sequence grad_u, grad_delta, grad_B, grad_C, grad_z;
    float* grad_A;      // (channels, states)
    float* grad_D;      // (channels), or null
    float* grad_bias;   // (channels), or null
};

struct ConvArgs {
    int64_t batch, length, channels, taps;
    int64_t threads;
    int64_t reverse;
    int64_t accumulate_x;  // backward: add to what `grad_x` holds
    Sequence x, out;
    const float* weight;  // (channels, taps); the last tap meets the token itself
    const float* bias;    // (channels)
    Sequence grad_out, grad_x;
    float* grad_weight;  // (channels, taps)
    float* grad_bias;    // (channels)
};

// The parameters of one direction of a mixer, and where their gradients go. E = channels, R = rank, N = states.
struct DirectionArgs {
    const float *conv_weight, *conv_bias;  // (E, taps), (E)
    const float* x_proj;                   // (R + 2 N, E)
    const float *dt_proj, *dt_bias;        // (E, R), (E)
    const float *A_log, *D;                // (E, N), (E)
    float* ends;                           // as in ScanArgs; or null
    Sequence projected;                    // (batch, length, R + 2 N): the time step's factor, B and C
    float *grad_conv_weight, *grad_conv_bias, *grad_x_proj, *grad_dt_proj, *grad_dt_bias, *grad_A_log, *grad_D;
};

// The directions of a mixer, from in_proj's result to out_proj's input.
struct MixerArgs {
    int64_t batch, length, channels, states, taps, rank;
    int64_t threads;
    int64_t count;                // of directions
    Sequence xz;                  // (batch, length, 2 E): what is scanned, and the gate
    Sequence out;                 // (batch, length, E)
    Sequence grad_out, grad_xz;   // backward
    DirectionArgs directions[2];  // in the order of the tokens, and, if there are two, from the last to the first
};

// The residual sum of contiguous rows (rows, channels) and its RMS norm.
struct NormArgs {
    int64_t rows, channels;
    int64_t threads;
    const float *hidden, *residual, *weight;  // residual may be null: zero
    float *total, *normed, *scale;            // scale is 1 / rms, (rows)
    const float *grad_normed, *grad_total;    // grad_total may be null: zero
    float *grad_hidden, *grad_weight;
    float epsilon;
};
