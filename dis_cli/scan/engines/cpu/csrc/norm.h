// The residual sum and its RMS norm, for contiguous rows of channels: total = hidden + residual,
// normed = total weight / rms with rms = sqrt(mean(total^2) + epsilon). Included once per instruction set, after vec.h.

// Calls work(channel, count) for each vector of a row.
template <typename Work>
INLINE void for_each_vector(int64_t channels, const Work& work) {
    int64_t channel = 0;
    for (; channel + WIDTH <= channels; channel += WIDTH) work(channel, WIDTH);
    if (channel < channels) work(channel, channels - channel);
}

void norm_forward(const NormArgs& args, int64_t first, int64_t last) {
    const int64_t channels = args.channels;
    for (int64_t r = first; r < last; ++r) {
        const float *hidden = args.hidden + r * channels, *residual = args.residual + r * channels;
        float *total = args.total + r * channels, *normed = args.normed + r * channels;
        Vec squares = splat(0.0f);
        for_each_vector(channels, [&](int64_t at, int64_t count) {
            Vec sum = load_part(hidden + at, count);
            if (args.residual) sum += load_part(residual + at, count);
            store_part(total + at, sum, count);
            squares += sum * sum;
        });
        const float scale = 1.0f / __builtin_sqrtf(sum_lanes(squares) / channels + args.epsilon);
        args.scale[r] = scale;
        for_each_vector(channels, [&](int64_t at, int64_t count) {
            store_part(normed + at, load_part(total + at, count) * scale * load_part(args.weight + at, count), count);
        });
    }
}

// Writes the gradient of hidden, which is that of residual as well, and adds to `sums` (padded channels) that of weight.
void norm_backward(const NormArgs& args, int64_t first, int64_t last, float* sums) {
    const int64_t channels = args.channels;
    for (int64_t r = first; r < last; ++r) {
        const float *total = args.total + r * channels, *grad = args.grad_normed + r * channels;
        const float* grad_total = args.grad_total + r * channels;
        float* to = args.grad_hidden + r * channels;
        const float scale = args.scale[r];
        Vec products = splat(0.0f);
        for_each_vector(channels, [&](int64_t at, int64_t count) {
            const Vec x = load_part(total + at, count), g = load_part(grad + at, count);
            products += x * g * load_part(args.weight + at, count);
            store(sums + at, load(sums + at) + x * g * scale);
        });
        const float shared = sum_lanes(products) * scale * scale * scale / channels;
        for_each_vector(channels, [&](int64_t at, int64_t count) {
            const Vec g = load_part(grad + at, count) * load_part(args.weight + at, count);
            Vec sum = g * scale - load_part(total + at, count) * shared;
            if (args.grad_total) sum += load_part(grad_total + at, count);
            store_part(to + at, sum, count);
        });
    }
}
