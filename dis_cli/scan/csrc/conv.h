// The causal depthwise convolution with SiLU of one sample and one slice of channels. Included once per instruction
// set, after scan.h. Lanes are channels; `prepared` holds the taps and then the bias, (taps + 1, blocks * WIDTH).

INLINE Row row(const Sequence& sequence, const ConvArgs& args, int64_t sample, int64_t token, int64_t channel) {
    const int64_t position = args.reverse ? args.length - 1 - token : token;
    float* at = sequence.data + sample * sequence.batch_stride + position * sequence.row_stride + channel;
    return {at, args.reverse ? -sequence.row_stride : sequence.row_stride};
}

void prepare_conv(const ConvArgs& args, float* prepared) {
    for (int64_t k = 0; k <= args.taps; ++k) {
        for (int64_t channel = 0; channel < padded(args.channels); ++channel) {
            const bool inside = channel < args.channels;
            const float value = !inside ? 0.0f : k < args.taps ? args.weight[channel * args.taps + k] : args.bias[channel];
            *prepared++ = value;
        }
    }
}

// The convolution before its SiLU at a token; `x` is that token's row.
template <int TAPS>
INLINE Vec convolve(const ConvArgs& args, const float* prepared, Row x, int64_t token, int64_t count) {
    const int64_t taps = TAPS ? TAPS : args.taps, width = padded(args.channels);
    Vec sum = load(prepared + taps * width);
    for (int64_t k = token < taps - 1 ? taps - 1 - token : 0; k < taps; ++k)
        sum += load(prepared + k * width) * load_part(x.at - (taps - 1 - k) * x.step, count);
    return sum;
}

template <int TAPS>
INLINE void conv_forward_taps(const ConvArgs& args, const float* prepared, const Task& task) {
    const auto [sample, begin, end] = task;
    for (int64_t first = 0; first < args.length; first += CHUNK) {
        const int64_t last = first + CHUNK < args.length ? first + CHUNK : args.length;
        for (int64_t channel = begin; channel < end; channel += WIDTH) {
            Row x = row(args.x, args, sample, first, channel), out = row(args.out, args, sample, first, channel);
            for (int64_t t = first; t < last; ++t, x.at += x.step, out.at += out.step) {
                const Vec p = convolve<TAPS>(args, prepared + channel, x, t, end - channel);
                store_part(out.at, p * sigmoid(p), end - channel);
            }
        }
    }
}

void conv_forward(const ConvArgs& args, const float* prepared, const Task& task) {
    if (args.taps == 4)
        conv_forward_taps<4>(args, prepared, task);
    else
        conv_forward_taps<0>(args, prepared, task);
}

// Adds to `sums`, of this sample: (taps + 1, blocks * WIDTH), the gradients of the taps and of the bias. `scratch` holds
// CHUNK + taps vectors. A chunk's first tokens also pass gradients to the chunk before it, which computes them again.
template <int TAPS>
INLINE void conv_backward_taps(const ConvArgs& args, const float* prepared, const Task& task,
                               float* scratch, float* sums) {
    const int64_t taps = TAPS ? TAPS : args.taps, width = padded(args.channels);
    const auto [sample, begin, end] = task;
    for (int64_t first = 0; first < args.length; first += CHUNK) {
        const int64_t last = first + CHUNK < args.length ? first + CHUNK : args.length;
        const int64_t seen = last + taps - 1 < args.length ? last + taps - 1 : args.length;
        for (int64_t channel = begin; channel < end; channel += WIDTH) {
            const int64_t count = end - channel;
            const Row start = row(args.x, args, sample, first, channel);
            Row x = start, grad = row(args.grad_out, args, sample, first, channel);
            for (int64_t t = first; t < seen; ++t, x.at += x.step, grad.at += grad.step) {
                const Vec p = convolve<TAPS>(args, prepared + channel, x, t, count), s = sigmoid(p);
                store(scratch + (t - first) * WIDTH, load_part(grad.at, count) * (s + p * s * (1.0f - s)));
            }
            Row to = row(args.grad_x, args, sample, first, channel);
            for (int64_t t = first; t < last; ++t, to.at += to.step) {
                Vec sum = args.accumulate_x ? load_part(to.at, count) : splat(0.0f);
                for (int64_t k = taps - 1; k >= 0 && t + taps - 1 - k < seen; --k)
                    sum += load(prepared + channel + k * width) * load(scratch + (t - first + taps - 1 - k) * WIDTH);
                store_part(to.at, sum, count);
            }
            for (int64_t k = 0; k <= taps; ++k) {
                float* into = sums + k * width + channel;
                Vec sum = load(into);
                const int64_t lag = taps - 1 - k;
                for (int64_t t = first > lag ? first : lag; t < last; ++t) {
                    const Vec grad_p = load(scratch + (t - first) * WIDTH);
                    sum += k == taps ? grad_p : grad_p * load_part(start.at + (t - first - lag) * start.step, count);
                }
                store(into, sum);
            }
        }
    }
}

void conv_backward(const ConvArgs& args, const float* prepared, const Task& task,
                   float* scratch, float* sums) {
    if (args.taps == 4)
        conv_backward_taps<4>(args, prepared, task, scratch, sums);
    else
        conv_backward_taps<0>(args, prepared, task, scratch, sums);
}
