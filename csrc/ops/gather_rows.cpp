// gather_rows: rows of blocks that lie one below the other, copied in one pass. A copy needs no instruction set, so the
// kernel is here.
#include <cstring>

#include "ops/rays.h"

namespace hashgrid {
namespace {

constexpr int64_t kGrain = 2048;  // rows per unit
constexpr int64_t kAhead = 8;     // rows whose memory is asked for early

struct Block {
  const char* data;
  int64_t end;  // rows of this block and of those before it
};

struct GatherRowsParams {
  std::vector<Block> blocks;
  const int64_t* rows;         // [n]
  const char* beside;          // [n_beside] rows, or nullptr
  const int64_t* beside_rows;  // [n]
  int64_t n_beside;
  int64_t n_bytes, n_bytes_beside;  // of a row
  char* out;                        // [n] rows of n_bytes + n_bytes_beside
};

// A row of the blocks, nullptr where there is none. Blocks are few: windows along rays.
const char* row_of(const GatherRowsParams& p, int64_t row) {
  if (row < 0) return nullptr;
  int64_t begin = 0;
  for (const Block& block : p.blocks) {
    if (row < block.end) return block.data + (row - begin) * p.n_bytes;
    begin = block.end;
  }
  return nullptr;
}

// Whether all rows exist; those in front of the first that does not are there.
bool gather(const GatherRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) __builtin_prefetch(row_of(p, p.rows[i + kAhead]));
    const char* row = row_of(p, p.rows[i]);
    if (row == nullptr) return false;
    char* out = p.out + i * (p.n_bytes + p.n_bytes_beside);
    std::memcpy(out, row, static_cast<size_t>(p.n_bytes));
    if (p.beside == nullptr) continue;
    if (p.beside_rows[i] < 0 || p.beside_rows[i] >= p.n_beside) return false;
    std::memcpy(out + p.n_bytes, p.beside + p.beside_rows[i] * p.n_bytes_beside, static_cast<size_t>(p.n_bytes_beside));
  }
  return true;
}

int64_t bytes_of_item(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    default:
      STD_TORCH_CHECK(false, "`", name, "` must have items of 2, 4 or 8 bytes, got ", name_of(tensor.scalar_type()));
  }
}

Tensor gather_rows_cpu(const std::vector<Tensor>& blocks, const Tensor& rows, const std::optional<Tensor>& beside,
                       const std::optional<Tensor>& beside_rows) {
  STD_TORCH_CHECK(!blocks.empty(), "`blocks` must hold one tensor at least, got none");
  STD_TORCH_CHECK(beside.has_value() == beside_rows.has_value(), "`beside` and `beside_rows` must come together");
  const Tensor& first = blocks[0];
  STD_TORCH_CHECK(first.dim() == 2, "`blocks` must have shape [N, C], got ", shape_of(first));
  STD_TORCH_CHECK(rows.dim() == 1, "`rows` must have shape [K], got ", shape_of(rows));
  const int64_t n_bytes_of_item = bytes_of_item(first, "blocks");
  const int64_t n = rows.size(0);
  int64_t n_columns = first.size(1);
  GatherRowsParams p = {};
  p.n_bytes = n_bytes_of_item * n_columns;
  int64_t end = 0;
  for (const Tensor& block : blocks) {
    const void* data = checked_data(block, "blocks", {-1, n_columns}, first.scalar_type());
    end += block.size(0);
    p.blocks.push_back({static_cast<const char*>(data), end});
  }
  p.rows = static_cast<const int64_t*>(checked_data(rows, "rows", {n}, ScalarType::Long));
  if (beside.has_value()) {
    STD_TORCH_CHECK(beside->dim() == 2, "`beside` must have shape [R, E], got ", shape_of(*beside));
    p.beside = static_cast<const char*>(checked_data(*beside, "beside", {-1, -1}, first.scalar_type()));
    p.beside_rows = static_cast<const int64_t*>(checked_data(*beside_rows, "beside_rows", {n}, ScalarType::Long));
    p.n_beside = beside->size(0);
    p.n_bytes_beside = n_bytes_of_item * beside->size(1);
    n_columns += beside->size(1);
  }
  Tensor out = empty_like_dtype(first, {n, n_columns});
  p.out = static_cast<char*>(out.mutable_data_ptr());
  std::atomic<bool> all_exist{true};
  parallel_units(n, kGrain, [&](int64_t unit_begin, int64_t unit_end) {
    if (!gather(p, unit_begin, unit_end)) all_exist = false;
  });
  STD_TORCH_CHECK(all_exist, "a row of `rows` or `beside_rows` does not exist: there are ", end, " and ", p.n_beside);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("gather_rows", TORCH_BOX(&gather_rows_cpu)); }

}  // namespace hashgrid
