// All crops of one image in one call, with the numbers of torch's antialiased bicubic resize of
// uint8 images: weights of 16 bits, a horizontal pass that rounds to levels, then a vertical one.
//
// Both passes sum pairs of neighbors: pixels lie in memory as pairs, so one multiply-add of 16-bit
// numbers handles two taps. For the horizontal pass the image is transposed once for all crops.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

constexpr int WIDE = 16;            // outputs computed at a time
constexpr int STRIP = 32, PIXELS = 64;  // rows and columns of the image transposed at a time
constexpr int TILE = 8;             // side of a transposed tile of 16-bit numbers
constexpr size_t KEPT = 64 << 20;   // bytes of scratch memory kept for the next image

// ---- 16 sums of products ------------------------------------------------------------------------

// `pairs` holds 16 pairs of pixels, `weights` two 16-bit weights; `store` rounds to levels.
#if defined(__AVX512BW__) && defined(__AVX512F__)
struct Sums {
    __m512i lanes;
    void start(int32_t value) { lanes = _mm512_set1_epi32(value); }
    void add(const uint8_t* pairs, int32_t weights) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
        const __m512i levels = _mm512_cvtepu8_epi16(bytes), both = _mm512_set1_epi32(weights);
#if defined(__AVX512VNNI__)
        lanes = _mm512_dpwssd_epi32(lanes, levels, both);
#else
        lanes = _mm512_add_epi32(lanes, _mm512_madd_epi16(levels, both));
#endif
    }
    void store(int bits, uint8_t* out) const {
        const __m512i levels = _mm512_sra_epi32(lanes, _mm_cvtsi32_si128(bits));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                         _mm512_cvtusepi32_epi8(_mm512_max_epi32(levels, _mm512_setzero_si512())));
    }
};
#elif defined(__AVX2__)
struct Sums {
    __m256i low, high;
    void start(int32_t value) { low = high = _mm256_set1_epi32(value); }
    void add(const uint8_t* pairs, int32_t weights) {
        const __m256i both = _mm256_set1_epi32(weights);
        const __m128i* bytes = reinterpret_cast<const __m128i*>(pairs);
        const __m256i first = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes));
        const __m256i second = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes + 1));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(first, both));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(second, both));
    }
    void store(int bits, uint8_t* out) const {
        const __m128i count = _mm_cvtsi32_si128(bits);
        const __m256i words = _mm256_permute4x64_epi64(
            _mm256_packs_epi32(_mm256_sra_epi32(low, count), _mm256_sra_epi32(high, count)), 0xd8);
        const __m128i levels =
            _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), levels);
    }
};
#else
struct Sums {
    int32_t lanes[WIDE];
    void start(int32_t value) { std::fill(lanes, lanes + WIDE, value); }
    void add(const uint8_t* pairs, int32_t weights) {
        const int32_t first = static_cast<int16_t>(weights), second = weights >> 16;
        for (int lane = 0; lane < WIDE; ++lane)
            lanes[lane] += pairs[2 * lane] * first + pairs[2 * lane + 1] * second;
    }
    void store(int bits, uint8_t* out) const {
        for (int lane = 0; lane < WIDE; ++lane)
            out[lane] = static_cast<uint8_t>(std::clamp(lanes[lane] >> bits, 0, 255));
    }
};
#endif

// Transpose 8 x 8 numbers of 16 bits; steps are in bytes.
void transpose(const uint8_t* from, size_t from_step, uint8_t* to, size_t to_step) {
#if defined(__SSE2__)
    __m128i a[TILE], b[TILE];
    for (int row = 0; row < TILE; ++row)
        a[row] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + row * from_step));
    for (int row = 0; row < 4; ++row) {
        b[2 * row] = _mm_unpacklo_epi16(a[row], a[row + 4]);
        b[2 * row + 1] = _mm_unpackhi_epi16(a[row], a[row + 4]);
    }
    for (int row = 0; row < 4; ++row) {
        a[2 * row] = _mm_unpacklo_epi16(b[row], b[row + 4]);
        a[2 * row + 1] = _mm_unpackhi_epi16(b[row], b[row + 4]);
    }
    for (int row = 0; row < 4; ++row) {
        b[2 * row] = _mm_unpacklo_epi16(a[row], a[row + 4]);
        b[2 * row + 1] = _mm_unpackhi_epi16(a[row], a[row + 4]);
    }
    for (int row = 0; row < TILE; ++row)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + row * to_step), b[row]);
#else
    for (int row = 0; row < TILE; ++row)
        for (int column = 0; column < TILE; ++column)
            std::memcpy(to + column * to_step + 2 * row, from + row * from_step + 2 * column, 2);
#endif
}

// ---- weights ------------------------------------------------------------------------------------

// One axis of one crop: where each output's pairs begin, and their weights.
struct Axis {
    int pairs;                      // of the output that has the most
    int bits;                       // weights are multiplied by 2^bits
    std::vector<int32_t> first;     // index of each output's first pair
    std::vector<int32_t> count;     // its pairs
    std::vector<int32_t> weights;   // (outputs, pairs), two numbers of 16 bits each
};

// Numbers per output of the axis at hand; `weights` is (taps, outputs).
struct Weighing {
    std::vector<double> center, first, count, total, largest, nearest, weights;
};

double bicubic(double x) {
    x = std::fabs(x);
    const double near = (1.5 * x - 2.5) * x * x + 1.0;
    const double far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    return x < 1.0 ? near : x < 2.0 ? far : 0.0;
}

// Where each output's taps begin, and how many the longest has.
int place(int input, double scale, int offset, Weighing& space, Axis& axis) {
    const double support = scale >= 1.0 ? 2.0 * scale : 2.0;
    const int64_t most = static_cast<int64_t>(std::ceil(static_cast<float>(support))) * 2 + 1;
    int64_t taps = 0;
    axis.pairs = 0;
    for (size_t i = 0; i < axis.first.size(); ++i) {
        const double center = scale * (i + 0.5);
        const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
        const int64_t end = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), input);
        const int64_t count = std::clamp<int64_t>(end - first, 0, most);
        space.center[i] = center;
        space.first[i] = static_cast<double>(first);
        space.count[i] = static_cast<double>(count);
        axis.first[i] = static_cast<int32_t>(first) + offset;
        taps = std::max(taps, count);
        axis.count[i] = static_cast<int32_t>((axis.first[i] & 1) + count + 1) / 2;
        axis.pairs = std::max(axis.pairs, axis.count[i]);
    }
    return static_cast<int>(taps);
}

// Fill `axis` for `input` pixels from `offset` on; false if a weight is so close to a tie that
// torch, whose compiler may have fused multiplications and additions, could round it differently.
bool weigh(int input, int output, int offset, Weighing& space, Axis& axis) {
    const double scale = static_cast<double>(input) / output;
    const double inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
    for (auto* part : {&space.center, &space.first, &space.count, &space.total, &space.largest})
        part->assign(output, 0.0);
    space.nearest.assign(output, 1.0);
    axis.first.resize(output);
    axis.count.resize(output);
    const int taps = place(input, scale, offset, space, axis);
    space.weights.resize(static_cast<size_t>(taps) * output);
    const double* const center = space.center.data();
    const double* const first = space.first.data();
    const double* const count = space.count.data();
    double* const total = space.total.data();
    double* const largest = space.largest.data();
    double* const nearest = space.nearest.data();
    double* const weights = space.weights.data();
    for (int j = 0; j < taps; ++j)
        for (int i = 0; i < output; ++i) {
            const double weight = bicubic((j + first[i] - center[i] + 0.5) * inverse);
            weights[j * output + i] = j < count[i] ? weight : 0.0;
            total[i] += weights[j * output + i];
        }
    for (int j = 0; j < taps; ++j)
        for (int i = 0; i < output; ++i) {
            weights[j * output + i] /= total[i];
            largest[i] = largest[i] < weights[j * output + i] ? weights[j * output + i] : largest[i];
        }
    const double most = *std::max_element(largest, largest + output);
    int bits = 0;
    while (bits < 22 && static_cast<int>(0.5 + most * (1 << (bits + 1))) < (1 << 15)) ++bits;
    axis.bits = bits;
    const double factor = 1 << bits;
    nearest[0] = std::fabs(most * 2.0 * factor - 32767.5);
    for (int j = 0; j < taps; ++j)
        for (int i = 0; i < output; ++i) {
            const double value = weights[j * output + i] * factor;
            const double down = std::floor(value);
            const double tie = std::fabs(value - down - 0.5);
            nearest[i] = tie < nearest[i] ? tie : nearest[i];
            weights[j * output + i] = std::floor(value + 0.5);
        }
    axis.weights.assign(static_cast<size_t>(output) * axis.pairs, 0);
    int16_t* const numbers = reinterpret_cast<int16_t*>(axis.weights.data());
    for (int i = 0; i < output; ++i) {
        int16_t* const to = numbers + 2 * i * axis.pairs + (axis.first[i] & 1);
        for (int j = 0; j < static_cast<int>(count[i]); ++j)
            to[j] = static_cast<int16_t>(weights[j * output + i]);
        axis.first[i] >>= 1;
    }
    const double doubt = std::ldexp(input + 8.0, -50) * factor / std::max(scale, 1.0);
    return *std::min_element(nearest, nearest + output) > doubt;
}

// ---- the image as pairs -------------------------------------------------------------------------

struct Image {
    const uint8_t* pixels;
    int64_t step;  // bytes from row to row
    int channels;
};

struct Box {
    int top, left, height, width;
};

size_t pad(size_t count, size_t unit) { return (count + unit - 1) / unit * unit; }

// One row as pairs of horizontal neighbors: (width / 2, C, 2).
void pair_row(const uint8_t* row, int width, int channels, uint8_t* pairs) {
    int x = 0;
#if defined(__AVX2__)
    if (channels == 3) {
        const __m128i order =
            _mm_setr_epi8(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, -1, -1, -1, -1);
        for (; x + 6 <= width; x += 4) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 3 * x));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs + 3 * x),
                             _mm_shuffle_epi8(bytes, order));
        }
    }
#endif
    for (; x < width; x += 2)
        for (int c = 0; c < channels; ++c) {
            pairs[x * channels + 2 * c] = row[x * channels + c];
            pairs[x * channels + 2 * c + 1] = x + 1 < width ? row[(x + 1) * channels + c] : 0;
        }
}

struct Scratch {
    std::vector<uint8_t> strip, columns, tile, rows;
    Weighing weighing;
    Axis across, down;
    size_t height;  // bytes from column to column
};

void reserve(std::vector<uint8_t>& bytes, size_t count) {
    if (bytes.size() < count) bytes.resize(count);
}

// The box as columns: (width / 2, C, height, 2).
void turn(const Image& image, const Box& box, Scratch& scratch) {
    const size_t count = pad(static_cast<size_t>(box.width + 1) / 2 * image.channels, TILE);
    const size_t wide = 2 * pad(PIXELS / 2 * image.channels, TILE);
    scratch.height = (2 * pad(box.height, STRIP) + 2 * STRIP);
    reserve(scratch.strip, STRIP * wide + WIDE);
    reserve(scratch.columns, (count + TILE) * scratch.height + WIDE);
    for (int y = 0; y < box.height; y += STRIP)
        for (int x = 0; x < box.width; x += PIXELS) {
            const int width = std::min(PIXELS, box.width - x);
            const uint8_t* const from = image.pixels + (box.top + y) * image.step +
                                        (box.left + x) * image.channels;
            for (int row = 0; row < std::min(STRIP, box.height - y); ++row)
                pair_row(from + row * image.step, width, image.channels,
                         scratch.strip.data() + row * wide);
            uint8_t* const to = scratch.columns.data() + x / 2 * image.channels * scratch.height;
            for (int column = 0; column < (width + 1) / 2 * image.channels; column += TILE)
                for (int row = 0; row < STRIP; row += TILE)
                    transpose(scratch.strip.data() + row * wide + 2 * column, wide,
                              to + column * scratch.height + 2 * (y + row), scratch.height);
        }
}

// ---- the two passes -----------------------------------------------------------------------------

// Levels of N * WIDE outputs from rows of pairs that are `step` bytes apart.
template <int N>
void sum(const uint8_t* from, size_t step, const int32_t* weights, int pairs, int bits, uint8_t* out) {
    Sums sums[N];
    for (int part = 0; part < N; ++part) sums[part].start(1 << (bits - 1));
    for (int pair = 0; pair < pairs; ++pair)
        for (int part = 0; part < N; ++part)
            sums[part].add(from + pair * step + 2 * WIDE * part, weights[pair]);
    for (int part = 0; part < N; ++part) sums[part].store(bits, out + WIDE * part);
}

// Levels of `length` outputs, a multiple of WIDE.
void sum_all(const uint8_t* from, size_t step, const int32_t* weights, int pairs, int bits,
             size_t length, uint8_t* out) {
    size_t place = 0;
    for (; place + 4 * WIDE <= length; place += 4 * WIDE)
        sum<4>(from + 2 * place, step, weights, pairs, bits, out + place);
    for (; place < length; place += WIDE)
        sum<1>(from + 2 * place, step, weights, pairs, bits, out + place);
}

// (width / 2, C, height, 2) -> rows (height / 2, size * C, 2).
void scale_across(const Box& box, int top, int size, int channels, Scratch& scratch, size_t step) {
    const Axis& axis = scratch.across;
    const size_t jump = channels * scratch.height, length = pad(box.height, WIDE);
    reserve(scratch.tile, TILE * length);
    uint8_t* const tile = scratch.tile.data();
    for (int begin = 0; begin < size * channels; begin += TILE) {
        for (int out = begin; out < std::min(begin + TILE, size * channels); ++out) {
            const int x = out / channels;
            const uint8_t* from = scratch.columns.data() + axis.first[x] * jump +
                                  (out % channels) * scratch.height + 2 * top;
            const int32_t* weights = axis.weights.data() + x * axis.pairs;
            sum_all(from, jump, weights, axis.count[x], axis.bits, length, tile + (out - begin) * length);
        }
        for (size_t y = 0; y < length; y += WIDE)
            transpose(tile + y, length, scratch.rows.data() + y / 2 * step + 2 * begin, step);
    }
}

// rows (height / 2, size * C, 2) -> (size, size, C).
void scale_down(int size, int channels, const Scratch& scratch, size_t step, uint8_t* out) {
    const Axis& axis = scratch.down;
    const size_t width = static_cast<size_t>(size) * channels, whole = width / WIDE * WIDE;
    uint8_t rest[WIDE];
    for (int y = 0; y < size; ++y, out += width) {
        const uint8_t* const from = scratch.rows.data() + axis.first[y] * step;
        const int32_t* const weights = axis.weights.data() + y * axis.pairs;
        sum_all(from, step, weights, axis.count[y], axis.bits, whole, out);
        if (whole == width) continue;
        sum<1>(from + 2 * whole, step, weights, axis.count[y], axis.bits, rest);
        std::memcpy(out + whole, rest, width - whole);
    }
}

// One crop; false if it is left to torch.
bool cut(const Box& whole, const Box& box, int size, int channels, Scratch& scratch, uint8_t* out) {
    if (!weigh(box.width, size, box.left - whole.left, scratch.weighing, scratch.across) ||
        !weigh(box.height, size, 0, scratch.weighing, scratch.down))
        return false;
    const size_t step = 2 * pad(static_cast<size_t>(size) * channels, WIDE);
    const size_t columns = (whole.width + 1) / 2 + scratch.across.pairs;
    reserve(scratch.columns, pad(columns * channels, TILE) * scratch.height + 2 * WIDE);
    reserve(scratch.rows, (pad(box.height, STRIP) / 2 + scratch.down.pairs) * step);
    scale_across(box, box.top - whole.top, size, channels, scratch, step);
    scale_down(size, channels, scratch, step, out);
    return true;
}
}  // namespace

// Cut `count` crops of one image and resize each to a square.
//
// pixels    (height, width, channels) levels; rows are `step` bytes apart
// crops     (count, 5): top, left, height, width, side of the square
// out       the squares, one after another, each (side, side, channels)
// left_out  (count): 1 for a crop that was not computed and is left to torch
//
// Returns 0, 1 without memory, 2 if a crop is empty or not inside the image.
extern "C" int32_t dino_cut_crops(const uint8_t* pixels, int32_t height, int32_t width,
                                  int32_t channels, int64_t step, const int32_t* crops,
                                  int32_t count, uint8_t* out, uint8_t* left_out) try {
    static thread_local Scratch scratch;
    int top = height, left = width, bottom = 0, right = 0;
    for (const int32_t* crop = crops; crop != crops + 5 * count; crop += 5) {
        const bool inside = crop[0] >= 0 && crop[1] >= 0 && crop[2] > 0 && crop[3] > 0 &&
                            crop[2] <= height - crop[0] && crop[3] <= width - crop[1];
        if (!inside || crop[4] <= 0 || channels <= 0) return 2;
        top = std::min(top, crop[0]);
        left = std::min(left, crop[1]);
        bottom = std::max(bottom, crop[0] + crop[2]);
        right = std::max(right, crop[1] + crop[3]);
    }
    const Box whole{top, left, bottom - top, right - left};
    turn(Image{pixels, step, channels}, whole, scratch);
    for (const int32_t* crop = crops; crop != crops + 5 * count; crop += 5) {
        const Box box{crop[0], crop[1], crop[2], crop[3]};
        *left_out++ = !cut(whole, box, crop[4], channels, scratch, out);
        out += static_cast<size_t>(crop[4]) * crop[4] * channels;
    }
    if (scratch.columns.size() > KEPT) scratch = Scratch();
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
