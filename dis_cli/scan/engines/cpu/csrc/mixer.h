// The directions of a mixer for one sample, all between in_proj and out_proj, with its intermediates in the cache.
// Included once per instruction set, after conv.h and gemm.h. For short sequences and narrow models, where calling one
// library function after the other costs as much as what they compute.

// A direction's parameters in the order in which they are read.
struct PreparedDirection {
    float *A, *conv;           // see prepare_A and prepare_conv
    float* x_proj;             // (R + 2 N, padded E)
    float* x_proj_transposed;  // (E, padded R + 2 N)
    float* dt_transposed;      // (R, padded E)
    float* dt_proj;            // (E, padded R)
};

int64_t prepared_size(const MixerArgs& args) {
    const int64_t E = padded(args.channels), R = args.rank, rows = R + 2 * args.states;
    return E * (args.states + args.taps + 1 + rows + padded(rows) + R + padded(R));
}

INLINE PreparedDirection prepared_at(const MixerArgs& args, float* memory) {
    const int64_t E = padded(args.channels), rows = args.rank + 2 * args.states;
    float *A = memory, *conv = A + E * args.states, *x_proj = conv + E * (args.taps + 1);
    float *x_proj_transposed = x_proj + rows * E, *dt_transposed = x_proj_transposed + E * padded(rows);
    return {A, conv, x_proj, x_proj_transposed, dt_transposed, dt_transposed + args.rank * E};
}

INLINE ScanArgs scan_args(const MixerArgs& args, int d) {
    const DirectionArgs& direction = args.directions[d];
    ScanArgs scan{};
    scan.batch = args.batch, scan.length = args.length, scan.channels = args.channels, scan.states = args.states;
    scan.reverse = d, scan.softplus = 1, scan.A_is_log = 1, scan.accumulate_out = d, scan.accumulate_z = d;
    scan.A = direction.A_log, scan.D = direction.D, scan.delta_bias = direction.dt_bias, scan.ends = direction.ends;
    scan.B = scan.C = direction.projected;
    scan.B.data += args.rank, scan.C.data += args.rank + args.states;
    return scan;
}

INLINE ConvArgs conv_args(const MixerArgs& args, int d) {
    const DirectionArgs& direction = args.directions[d];
    ConvArgs conv{};
    conv.batch = args.batch, conv.length = args.length, conv.channels = args.channels, conv.taps = args.taps;
    conv.reverse = d, conv.accumulate_x = d;
    conv.weight = direction.conv_weight, conv.bias = direction.conv_bias;
    conv.x = args.xz, conv.grad_x = args.grad_xz;
    return conv;
}

void prepare_mixer(const MixerArgs& args, int d, float* memory) {
    const DirectionArgs& direction = args.directions[d];
    const int64_t E = args.channels, R = args.rank, rows = R + 2 * args.states;
    const PreparedDirection prepared = prepared_at(args, memory);
    prepare_A(scan_args(args, d), prepared.A);
    prepare_conv(conv_args(args, d), prepared.conv);
    for (int64_t p = 0; p < rows; ++p)
        for (int64_t e = 0; e < E; ++e)
            prepared.x_proj[p * padded(E) + e] = prepared.x_proj_transposed[e * padded(rows) + p] =
                direction.x_proj[p * E + e];
    for (int64_t e = 0; e < E; ++e) {
        for (int64_t r = 0; r < R; ++r) {
            prepared.dt_proj[e * padded(R) + r] = direction.dt_proj[e * R + r];
            prepared.dt_transposed[r * padded(E) + e] = direction.dt_proj[e * R + r];
        }
    }
}

INLINE Sequence on_scratch(float* data, int64_t row_stride) { return {data, 0, row_stride}; }

// u, and delta from [dt, B, C], which is computed unless the forward has.
INLINE void mixer_inputs(const MixerArgs& args, int d, int64_t sample, const PreparedDirection& prepared,
                         const MixerScratch& scratch, bool project) {
    const int64_t E = args.channels, width = padded(E), R = args.rank, rows = R + 2 * args.states;
    const Sequence& projected = args.directions[d].projected;
    float* at = projected.data + sample * projected.batch_stride;
    ConvArgs conv = conv_args(args, d);
    conv.out = on_scratch(scratch.u, width);
    conv_forward(conv, prepared.conv, {sample, 0, E});
    if (project)
        multiply({args.length, E, rows, scratch.u, width, 1, prepared.x_proj_transposed, padded(rows), at,
                  projected.row_stride, false});
    multiply({args.length, R, E, at, projected.row_stride, 1, prepared.dt_transposed, width, scratch.delta, width, false});
}

void mixer_forward(const MixerArgs& args, float* const prepared[2], int64_t sample, const MixerScratch& scratch) {
    const int64_t E = args.channels;
    for (int d = 0; d < args.count; ++d) {
        const PreparedDirection direction = prepared_at(args, prepared[d]);
        mixer_inputs(args, d, sample, direction, scratch, true);
        ScanArgs scan = scan_args(args, d);
        scan.u = on_scratch(scratch.u, padded(E)), scan.delta = on_scratch(scratch.delta, padded(E));
        scan.out = args.out;
        // The gate comes with the last direction, once the first is added.
        if (d == args.count - 1) scan.z = args.xz, scan.z.data += E;
        scan_forward(scan, direction.A, {sample, 0, E}, scratch.states);
    }
}

// Adds the sample's gradients of the parameters to `sums` of each direction.
void mixer_backward(const MixerArgs& args, float* const prepared[2], int64_t sample, const MixerScratch& scratch,
                    const MixerSums sums[2]) {
    const int64_t E = args.channels, width = padded(E), N = args.states, R = args.rank, rows = R + 2 * N;
    const int64_t L = args.length;
    for (int d = 0; d < args.count; ++d) {
        const DirectionArgs& parameters = args.directions[d];
        const PreparedDirection direction = prepared_at(args, prepared[d]);
        mixer_inputs(args, d, sample, direction, scratch, false);
        ScanArgs scan = scan_args(args, d);
        scan.u = on_scratch(scratch.u, width), scan.delta = on_scratch(scratch.delta, width);
        scan.grad_u = on_scratch(scratch.grad_u, width), scan.grad_delta = on_scratch(scratch.grad_delta, width);
        scan.z = args.xz, scan.z.data += E;
        scan.grad_z = args.grad_xz, scan.grad_z.data += E;
        scan.grad_out = args.grad_out;
        scan_backward(scan, direction.A, {sample, 0, E}, {scratch.states, scratch.grad_BC},
                      {sums[d].A, sums[d].D, sums[d].dt_bias, scratch.grad_B, scratch.grad_C});
        for (int64_t t = 0; t < L; ++t) {
            float* to = scratch.grad_projected + (d ? L - 1 - t : t) * rows + R;
            for (int64_t n = 0; n < N; ++n) to[n] = scratch.grad_B[t * N + n], to[N + n] = scratch.grad_C[t * N + n];
        }
        multiply({L, E, R, scratch.grad_delta, width, 1, direction.dt_proj, padded(R), scratch.grad_projected, rows, false});
        multiply({L, rows, E, scratch.grad_projected, rows, 1, direction.x_proj, width, scratch.grad_u, width, true});
        multiply({rows, L, E, scratch.grad_projected, 1, rows, scratch.u, width, sums[d].x_proj, width, true});
        const Sequence& projected = parameters.projected;
        multiply({R, L, E, projected.data + sample * projected.batch_stride, 1, projected.row_stride,
                  scratch.grad_delta, width, sums[d].dt_proj, width, true});
        ConvArgs conv = conv_args(args, d);
        conv.grad_out = on_scratch(scratch.grad_u, width);
        conv_backward(conv, direction.conv, {sample, 0, E}, scratch.conv, sums[d].conv);
    }
}
