// Device "hpu" in host memory, below torch's autograd: every operator runs its CPU kernel on a zero-copy alias.
//
// Operators get an explicit boxed kernel each (`register_operators`), since a backend fallback would see structured
// operators only as their out variants. What arrives here is what autograd sends to a backend, from any thread and from
// compiled graphs; it is written down (`Recorder`) as per-operator signatures and, in lazy mode, as graphs.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <signal.h>
#include <unistd.h>

#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <unordered_map>
#include <unordered_set>

namespace py = pybind11;
using at::Tensor;
using c10::IValue;
using Stack = torch::jit::Stack;

// ---- memory ---------------------------------------------------------------------------------------------------------

struct Memory {
  std::atomic<int64_t> in_use{0}, peak{0}, allocations{0}, frees{0}, largest{0}, serial{0};
};
static Memory memory;
static const c10::Device HPU(at::kHPU, 0);

// One piece of device memory; its number never comes again, unlike its address.
struct Block {
  void* data;
  int64_t bytes;
  int64_t serial;
  bool external = false;  // came from the host: an input of graphs, not a result
  int64_t used_in = -1;   // number of the lazy graph that last used it
  c10::Storage owner;     // set if the memory belongs to a CPU storage
};

static void release(void* context) {
  auto* block = static_cast<Block*>(context);
  memory.in_use -= block->bytes;
  memory.frees++;
  if (!block->owner) free(block->data);
  delete block;
}

static at::DataPtr own(Block* block) {
  // A device opened by a parent process cannot be used in its forked children.
  static const pid_t opener = getpid();
  TORCH_CHECK(opener == getpid(), "hpu: the device was opened before this process was forked; use the spawn method");
  block->serial = memory.serial++;
  memory.allocations++;
  memory.in_use += block->bytes;
  if (memory.in_use > memory.peak) memory.peak = memory.in_use.load();
  if (block->bytes > memory.largest) memory.largest = block->bytes;
  return {block->data, block, &release, HPU};
}

struct DeviceAllocator final : at::Allocator {
  at::DataPtr allocate(size_t n) override {
    return own(new Block{n ? malloc(n) : nullptr, static_cast<int64_t>(n), 0});
  }
  void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
};
static DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(at::kHPU, &device_allocator);

static std::mutex pinned_mutex;
static std::map<const char*, size_t> pinned;

static void unpin(void* data) {
  std::lock_guard lock(pinned_mutex);
  pinned.erase(static_cast<const char*>(data));
  free(data);
}

struct PinnedAllocator final : at::Allocator {
  at::DataPtr allocate(size_t n) override {
    auto* data = static_cast<char*>(malloc(n ? n : 1));
    std::lock_guard lock(pinned_mutex);
    pinned[data] = n ? n : 1;
    return {data, data, &unpin, at::kCPU};
  }
  at::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
};
static PinnedAllocator pinned_allocator;

static bool is_pinned(const void* pointer) {
  std::lock_guard lock(pinned_mutex);
  auto next = pinned.upper_bound(static_cast<const char*>(pointer));
  return next != pinned.begin() && (--next, static_cast<const char*>(pointer) < next->first + next->second);
}

// ---- generator, guard, hooks ----------------------------------------------------------------------------------------

// The device's random numbers: a host generator that says it lives on the device.
struct DeviceGenerator final : c10::GeneratorImpl {
  at::Generator host;
  explicit DeviceGenerator(at::Generator host)
      : c10::GeneratorImpl(HPU, c10::DispatchKeySet(c10::DispatchKey::HPU)), host(std::move(host)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(host.clone()); }
};

static at::Generator new_generator() {
  return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator());
}
static const at::Generator& default_generator() {
  static const at::Generator generator = new_generator();
  return generator;
}

static void check_index(c10::Device device) {
  TORCH_CHECK(device.index() <= 0, "hpu: invalid device index ", int(device.index()), ", a process has one device");
}

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return at::kHPU; }
  c10::Device exchangeDevice(c10::Device device) const override { return check_index(device), HPU; }
  c10::Device getDevice() const override { return HPU; }
  void setDevice(c10::Device device) const override { check_index(device); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, HPU); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(HPU, DeviceGuard);

namespace at {
struct HPUHooks final : HPUHooksInterface {  // autograd finds the accelerator by this very name
  explicit HPUHooks(HPUHooksArgs) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex index) const override { check_index({at::kHPU, index}); }
  bool isPinnedPtr(const void* pointer) const override { return is_pinned(pointer); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  Device getDeviceFromPtr(void*) const override { return HPU; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override { return new_generator(); }
};
REGISTER_HPU_HOOKS(HPUHooks)
}  // namespace at

// A CUDA build of torch on a machine without a GPU still counts as one accelerator, and torch refuses two. There is no
// switch: the hooks object gets the vtable of one that answers "not built". With a GPU nothing is touched.
struct NoCudaHooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return false; }
};
static bool hide_cuda() {
  static NoCudaHooks none;
  auto& hooks = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  if (hooks.hasCUDA()) return false;
  if (hooks.isBuilt()) *reinterpret_cast<void**>(&hooks) = *reinterpret_cast<void**>(&none);
  return true;
}

// ---- what the process is set to -------------------------------------------------------------------------------------

struct Settings {
  int mode = 1;  // PT_HPU_LAZY_MODE
  bool tanh_gelu = true;
  bool restricts_fallback = false;  // PT_HPU_PLACE_ON_CPU is set
  std::set<std::string> allowed_fallbacks;
  bool stable_sort_may_fall_back = true;
  std::unordered_set<std::string> native, uploaded, always_fallback;  // base names
  std::unordered_set<std::string> not_native;  // forms of native operators that are not, as "_fused_adamw_.tensor_lr"
  std::map<std::string, std::string> faults;  // base name of an operator -> what goes wrong in it
  PyObject* observer = nullptr;  // called with (kind, bytes, flags) where the host touches the device
};
static Settings settings;

static std::string without_underscore(std::string name) {
  if (name.size() > 1 && name.back() == '_' && name[name.size() - 2] != '_') name.pop_back();
  return name;
}
static std::string base_name(const c10::OperatorName& name) {
  return without_underscore(name.name.substr(name.name.find("::") + 2));
}

// ---- recorder -------------------------------------------------------------------------------------------------------

struct Event {
  std::string kind, text, phase;
};

static thread_local int open_graphs = 0;  // compiled graphs that this thread is running; what they hold is no launch

class Recorder {
 public:
  std::mutex mutex;
  std::vector<Event> log;
  int watchers = 0;
  int64_t flushed = 0;  // number of the graph being collected
  std::vector<std::vector<std::string>> graphs;
  std::map<std::string, int64_t> fallbacks;
  std::string phase;  // of the training step, where somebody says it
  std::atomic<bool> has_queue{false};  // outside lazy mode: something was given to the bridge's threads since a wait

  void add(const std::string& kind, const std::string& text) {
    if (watchers) log.push_back({kind, text, phase});
  }

  void count(const std::string& kind, const std::string& text = "") {
    if (kind == "launch") has_queue = true;
    std::lock_guard lock(mutex);
    if (!open_graphs) add(kind, text);
  }

  // In lazy mode: close the pending graph and look it up; whether the host waits for the thread that launches it.
  bool flush(const std::string& why) {
    std::lock_guard lock(mutex);
    if (pending.empty()) return false;
    std::string key;
    for (const auto& line : pending) key += line + "\n";
    auto [place, is_new] = known.emplace(std::move(key), graphs.size());
    if (is_new) graphs.push_back(pending);
    add(is_new ? "new_graph" : "graph", std::to_string(place->second) + " " + why);
    pending.clear();
    numbers.clear();
    first_serial = memory.serial;
    flushed++;
    return std::exchange(has_new_number, false);
  }

  void add_compiled(std::vector<std::string> lines) {
    std::lock_guard lock(mutex);
    add("new_graph", std::to_string(graphs.size()) + " torch.compile");
    graphs.push_back(std::move(lines));
  }

  // A tensor as an operator's argument: in a graph (`lazy`) with its place in memory, else type and sizes only.
  std::string describe(const Tensor& t, bool lazy) {
    std::ostringstream text;
    if (lazy) {
      auto* block = static_cast<Block*>(t.storage().data_ptr().get_context());
      bool is_input = block->external || block->serial < first_serial;
      auto [place, is_new] = numbers.emplace(block->serial, numbers.size());
      text << (is_input ? "in" : "%") << place->second << ' ' << (is_new && is_input && t.requires_grad() ? "grad " : "");
      block->used_in = flushed;
    }
    text << short_type(t.scalar_type()) << t.sizes();
    if (lazy && !t.is_contiguous()) text << " strides" << t.strides();
    if (lazy && t.storage_offset()) text << " offset " << t.storage_offset();
    return text.str();
  }

  void add_operator(const std::string& line, const std::string& graph_line) {
    if (ops.insert(line).second) add("new_op", line);
    add("op", line);
    if (graph_line.empty()) return;
    pending.push_back(graph_line);
  }

  void add_number(const std::string& number) {
    if (numbers_uploaded.size() > 500) numbers_uploaded.clear();  // the bridge empties its cache there too
    if (!numbers_uploaded.insert(number).second) return;
    has_new_number = true;
    add("scalar_upload", number);
  }

  static const char* short_type(at::ScalarType type) {
    switch (type) {
      case at::kFloat: return "f32";
      case at::kBFloat16: return "bf16";
      case at::kHalf: return "f16";
      case at::kDouble: return "f64";
      case at::kLong: return "i64";
      case at::kInt: return "i32";
      default: return c10::toString(type);
    }
  }

 private:
  std::vector<std::string> pending;
  std::unordered_map<std::string, int64_t> known;
  std::unordered_map<int64_t, int64_t> numbers;    // of a graph's tensors, by block, in order of first use
  std::unordered_set<std::string> ops, numbers_uploaded;
  bool has_new_number = false;  // a graph with one is not queued behind the last, the host waits
  int64_t first_serial = 0;  // blocks older than this are inputs of the pending graph
};
static Recorder& recorder() {
  static auto* instance = new Recorder;  // never destroyed: threads may outlive the interpreter
  return *instance;
}

static bool is_lazy() { return settings.mode != 0; }

// Tell Python, which knows the caller, that the host read from or wrote to the device.
static void observe(const std::string& kind, int64_t bytes = 0, const std::string& flags = "") {
  if (!settings.observer || !recorder().watchers) return;
  py::gil_scoped_acquire gil;
  py::handle(settings.observer)(kind, bytes, flags);
}

static void flush(const std::string& why) {
  if (is_lazy() && recorder().flush(why)) observe("join", 0, "a number that is new");
}

// Outside lazy mode: the host waits for the bridge's threads, if they have anything to do.
static void join(const std::string& why) {
  if (recorder().has_queue.exchange(false)) observe("join", 0, why);
}

static void read_by_host(const std::string& kind) {
  flush(kind);
  recorder().has_queue = false;
  observe(kind);
}

// ---- aliases and types ----------------------------------------------------------------------------------------------

static Block* block_of(const Tensor& t) { return static_cast<Block*>(t.storage().data_ptr().get_context()); }

static bool is_on_device(const Tensor& t) { return t.defined() && t.device().type() == at::kHPU; }

static Tensor as_cpu(const Tensor& t) {
  if (!is_on_device(t)) return t;
  auto* keep = new c10::Storage(t.storage());
  at::DataPtr data(
      const_cast<void*>(keep->data()), keep, [](void* p) { delete static_cast<c10::Storage*>(p); }, at::kCPU);
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), keep->nbytes(), std::move(data), at::getCPUAllocator(), /*resizable=*/true);
  auto alias = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return alias;
}

static at::DataPtr adopt(const c10::Storage& storage) {
  return own(new Block{const_cast<void*>(storage.data()), static_cast<int64_t>(storage.nbytes()), 0, false, -1, storage});
}

static Tensor make_tensor(c10::Storage storage, const Tensor& like) {
  auto t = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::HPU), like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return t;
}

static Tensor as_device(const Tensor& cpu) {
  if (!cpu.defined() || cpu.device().type() != at::kCPU) return cpu;
  const auto& storage = cpu.storage();
  return make_tensor(
      c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), adopt(storage), &device_allocator, true), cpu);
}

static void check_type(at::ScalarType type, const std::string& op) {
  TORCH_CHECK(!at::isComplexType(type), "Complex datatype is not supported on HPU device.");
  TORCH_CHECK(
      type != at::kUInt16 && type != at::kUInt32 && type != at::kUInt64 && !at::isQIntType(type),
      "Unsupported pytorch type ", c10::toString(type));
  if (type != at::kDouble) return;
  std::lock_guard lock(recorder().mutex);
  recorder().add("float64", op);
}

// 64 bits exist only in the visible type: values lose what 32 bits cannot hold.
static void round_to_device(const Tensor& cpu) {
  if (!cpu.defined() || cpu.numel() == 0) return;
  if (cpu.scalar_type() == at::kDouble) cpu.copy_(cpu.to(at::kFloat));
  if (cpu.scalar_type() == at::kLong && is_lazy()) cpu.copy_(cpu.to(at::kInt));
}

static void check_range(const Tensor& host) {
  if (host.numel() == 0) return;
  auto fail = [&](const char* from, const char* to, auto low, auto high, auto least, auto most) {
    TORCH_CHECK(
        low >= least && high <= most, "Error when trying to cast ", from, " to ", to, ", Input values range [", low,
        ", ", high, "] exceeds ", to, " range [", least, ", ", most, "]");
  };
  if (host.scalar_type() == at::kLong && is_lazy()) {
    using Limits = std::numeric_limits<int32_t>;
    fail("Long", "Int", host.min().item<int64_t>(), host.max().item<int64_t>(), int64_t(Limits::min()),
         int64_t(Limits::max()));
  }
  if (host.scalar_type() == at::kDouble) {
    auto finite = host.masked_select(host.isfinite());
    if (finite.numel() == 0) return;
    double most = std::numeric_limits<float>::max();
    fail("Double", "Float", finite.min().item<double>(), finite.max().item<double>(), -most, most);
  }
}

// ---- running an operator --------------------------------------------------------------------------------------------

// Whether the bridge has this form of an operator at all.
static bool is_listed(const c10::OperatorHandle& op) {
  auto full = c10::toString(op.operator_name());
  return settings.native.count(base_name(op.operator_name())) && !settings.not_native.count(full.substr(full.find("::") + 2));
}

static bool is_native(const c10::OperatorHandle& op, const Stack& arguments) {
  auto name = base_name(op.operator_name());
  if (settings.always_fallback.count(name) || !is_listed(op)) return false;
  if (name != "sort" && name != "masked_select") return true;
  const auto& self = arguments[0].toTensor();
  if (self.dim() > 5) return false;
  if (!settings.stable_sort_may_fall_back || name == "masked_select" || op.operator_name().overload_name.rfind("stable", 0) != 0) return true;
  auto dim = at::maybe_wrap_dim(arguments[2].toInt(), self.dim());
  return arguments[1].isBool() && arguments[1].toBool() && (dim == 0 || self.size(dim) > 37);
}

static void count_fallback(const std::string& name, const std::string& base) {
  TORCH_CHECK(
      !settings.restricts_fallback || settings.allowed_fallbacks.count(base), name, " is not yet supported on HPU.");
  flush("cpu fallback of " + name);
  recorder().has_queue = false;
  auto& r = recorder();
  std::lock_guard lock(r.mutex);
  r.fallbacks[name]++;
  r.add("fallback", name);
}

// Kernels whose result's size depends on values: the host has to wait for them.
static bool has_open_shape(const std::string& base, const Stack& arguments) {
  static const std::set<std::string> names{
      "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal"};
  if (names.count(base)) return true;
  if (base == "repeat_interleave") return arguments.size() == 2 && arguments[1].isNone();
  if (base != "index" && base != "index_put" && base != "_index_put_impl") return false;
  for (const IValue& index : arguments[1].toListRef()) {
    if (index.isTensor() && index.toTensor().defined() &&
        (index.toTensor().scalar_type() == at::kBool || index.toTensor().scalar_type() == at::kByte))
      return true;
  }
  return false;
}

// The line that stands for one call; `lazy` adds the places of tensors in memory.
class Line {
 public:
  Line(const c10::OperatorHandle& op, bool lazy) : base(base_name(op.operator_name())), lazy(lazy) {
    text << c10::toString(op.operator_name()) << '(';
  }

  void add_argument(const c10::Argument& argument, const IValue& value) {
    if (value.isNone() || value.isGenerator() || argument.type()->kind() == c10::TypeKind::DeviceObjType) return;
    text << (first ? "" : ", ") << argument.name() << '=';
    first = false;
    if (value.isScalar() && settings.uploaded.count(base + "." + argument.name())) {
      add_number(value);
    } else {
      add_value(value);
    }
  }

  std::string finish(const std::vector<Tensor>& results) {
    text << ") -> ";
    for (const auto& t : results) text << (is_on_device(t) ? recorder().describe(t, lazy) : "-") << ' ';
    return text.str();
  }

 private:
  std::string base;
  bool lazy, first = true;
  std::ostringstream text;

  void add_number(const IValue& value) {
    std::ostringstream number;
    number << value;
    recorder().add_number(number.str());
    text << "<" << value.tagKind() << ">";
  }

  void add_value(const IValue& value) {
    if (value.isTensor()) {
      add_tensor(value.toTensor());
    } else if (value.isList() && value.toList().elementType()->kind() != c10::TypeKind::IntType) {
      text << '[';
      for (const IValue& item : value.toListRef()) add_value(item), text << "; ";
      text << ']';
    } else {
      text << value;
    }
  }

  void add_tensor(const Tensor& t) {
    if (!t.defined()) {
      text << '-';
    } else if (is_on_device(t)) {
      text << recorder().describe(t, lazy);
    } else if (t.dim() == 0) {
      add_number(t.item());
    } else {
      text << "host " << t.sizes();
    }
  }
};

using Aliases = std::vector<std::pair<Tensor, Tensor>>;  // device tensor, its CPU alias

static IValue convert(const IValue& value, Aliases& aliases, bool allows_host) {
  if (value.isTensor()) {
    const auto& t = value.toTensor();
    if (!t.defined()) return value;
    if (!is_on_device(t)) {
      TORCH_CHECK(
          allows_host || t.dim() == 0,
          "Expected all tensors to be on the same device, but found at least two devices, hpu:0 and ", t.device(), "!");
      return value;
    }
    aliases.emplace_back(t, as_cpu(t));
    return aliases.back().second;
  }
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(convert(t, aliases, allows_host).toTensor());
    return list;
  }
  if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& item : value.toListRef()) {
      list.push_back(item.isTensor() ? std::make_optional(convert(item, aliases, true).toTensor()) : std::nullopt);
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == at::kHPU) return IValue(c10::Device(at::kCPU));
  return value;
}

static IValue convert_generator(const IValue& value) {
  const auto& generator = value.isNone() ? default_generator() : value.toGenerator();
  if (generator.device().type() != at::kHPU) return value;
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->host;
}

// After a kernel: a resized alias hands its new memory and sizes to the device tensor.
static void write_back(const Tensor& device, const Tensor& alias) {
  if (alias.storage().data() != device.storage().data() || alias.storage().nbytes() != device.storage().nbytes()) {
    auto storage = device.storage();
    auto nbytes = alias.storage().nbytes();
    storage.set_data_ptr_noswap(adopt(alias.storage()));
    storage.set_nbytes(nbytes);
  }
  if (alias.sizes() != device.sizes() || alias.strides() != device.strides()) {
    device.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
  }
}

static Tensor convert_result(const Tensor& cpu, const Aliases& aliases, const std::string& op) {
  if (!cpu.defined()) return cpu;
  for (const auto& [device, alias] : aliases) {
    if (cpu.is_same(alias)) return device;
    if (cpu.storage().unsafeGetStorageImpl() == alias.storage().unsafeGetStorageImpl()) {
      return make_tensor(device.storage(), cpu);
    }
  }
  check_type(cpu.scalar_type(), op);
  round_to_device(cpu);
  return as_device(op == "aten::clone" ? cpu : cpu.contiguous());  // the bridge's results are contiguous
}

static IValue convert_results(const IValue& value, const Aliases& aliases, const std::string& op,
                              std::vector<Tensor>& results) {
  if (value.isTensor()) {
    results.push_back(convert_result(value.toTensor(), aliases, op));
    return results.back();
  }
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const Tensor& t : value.toTensorVector()) {
    results.push_back(convert_result(t, aliases, op));
    list.push_back(results.back());
  }
  return list;
}

static void force_tanh_gelu(const std::string& base, Stack& arguments) {
  if (!settings.tanh_gelu || base.rfind("gelu", 0) != 0) return;
  for (auto& value : arguments) {
    if (value.isString()) value = IValue("tanh");
  }
}

static void call_on_host(const c10::OperatorHandle& op, Stack& stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  op.callBoxed(stack);
}

// ---- faults on demand ------------------------------------------------------------------------------------------------

static std::string fault_of(const std::string& base) {
  auto found = settings.faults.find(base);
  return found == settings.faults.end() ? "" : found->second;
}

// What goes wrong before an operator runs.
static void fail_before(const std::string& fault, const std::string& name) {
  TORCH_CHECK(fault != "refuse", name, " is not yet supported on HPU.");
  TORCH_CHECK(
      fault != "oom", "FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB, in ", name);
  if (fault == "kill") raise(SIGKILL);
  while (fault == "hang") sleep(1);
}

static void spoil(const IValue& value) {
  if (value.isTensorList()) {
    for (const Tensor& t : value.toTensorVector()) spoil(t);
  } else if (value.isTensor() && value.toTensor().defined()) {
    const auto& t = value.toTensor();
    if (t.scalar_type() == at::kBool) {
      t.logical_not_();
    } else {
      t.is_floating_point() ? t.mul_(1.125) : t.add_(1);
    }
  }
}

// Wrong numbers: floating ones are an eighth too large, integers one, and truth is a lie.
static void spoil_results(const c10::FunctionSchema& schema, const Stack& arguments, const Stack& results) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  at::AutoDispatchBelowADInplaceOrView below;
  for (const auto& value : results) spoil(value);
  if (!results.empty()) return;
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias && alias->isWrite()) spoil(arguments[i]);
  }
}

// ---- the kernel of every operator -----------------------------------------------------------------------------------

// Write it down, run it on the host's memory, give device tensors back.
static void run(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  auto base = base_name(op.operator_name());
  auto name = c10::toString(op.operator_name());
  Stack arguments = torch::jit::last(*stack, schema.arguments().size()).vec();
  torch::jit::drop(*stack, schema.arguments().size());
  auto fault = fault_of(base);
  fail_before(fault, name);
  bool on_host = fault == "fallback" || !is_native(op, arguments);
  if (on_host) count_fallback(name, base);
  if (has_open_shape(base, arguments)) read_by_host(base == "equal" ? "equal" : "nonzero");

  auto& r = recorder();
  Line line(op, false), graph_line(op, true);
  {
    std::lock_guard lock(r.mutex);
    for (size_t i = 0; i < arguments.size(); i++) {
      line.add_argument(schema.arguments()[i], arguments[i]);
      if (is_lazy()) graph_line.add_argument(schema.arguments()[i], arguments[i]);
    }
  }
  force_tanh_gelu(base, arguments);
  Aliases aliases;
  aliases.reserve(arguments.size());
  Stack host;
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& type = schema.arguments()[i].type();
    bool is_generator = type->isSubtypeOf(*c10::OptionalType::create(c10::GeneratorType::get()));
    host.push_back(is_generator ? convert_generator(arguments[i]) : convert(arguments[i], aliases, false));
  }
  Stack written = fault == "wrong" ? host : Stack();
  call_on_host(op, host);
  if (fault == "wrong") spoil_results(schema, written, host);
  for (const auto& [device, alias] : aliases) {
    write_back(device, alias);
    if (schema.is_mutable()) round_to_device(alias);
  }
  std::vector<Tensor> results;
  for (const auto& value : host) stack->push_back(convert_results(value, aliases, name, results));
  {
    std::lock_guard lock(r.mutex);
    r.add_operator(line.finish(results), is_lazy() ? graph_line.finish(results) : "");
  }
  if (!on_host) r.count("launch", name);
  if (settings.mode == 2) flush("mode 2");
}

// ---- kernels that are no computation --------------------------------------------------------------------------------

using Type = std::optional<at::ScalarType>;
using Place = std::optional<at::Device>;

static at::ScalarType check_new(Type type, Place device, size_t rank) {
  check_index(device.value_or(HPU));
  TORCH_CHECK(rank <= 8, "HPU doesn't support rank > 8D");
  recorder().count("allocation");
  check_type(c10::dtype_or_default(type), "aten::empty");
  return c10::dtype_or_default(type);
}

static Tensor empty(at::IntArrayRef size, Type type, std::optional<at::Layout>, Place device, std::optional<bool>,
                    std::optional<at::MemoryFormat> format) {
  auto checked = check_new(type, device, size.size());
  return at::detail::empty_generic(
      size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::HPU), checked, format);
}

static Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Type type, std::optional<at::Layout>,
                            Place device, std::optional<bool>) {
  auto checked = check_new(type, device, size.size());
  return at::detail::empty_strided_generic(
      size, stride, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::HPU), checked);
}

static void upload(const Tensor& host, const Tensor& device, bool non_blocking) {
  check_range(host);
  auto* block = block_of(device);
  if (is_lazy() && block->used_in == recorder().flushed) {
    flush("copy from the host into a tensor in use");
    observe("join", 0, "copy into a tensor in use");
  }
  // In eager mode a copy from pinned memory waits for what is queued; one from pageable memory is queued behind it.
  if (!non_blocking) recorder().has_queue = false;
  else if (!is_pinned(host.data_ptr())) recorder().has_queue = true;
  else if (!is_lazy()) join("copy from pinned memory");
  observe("upload", host.nbytes(), non_blocking ? "non_blocking" : "blocking");
  as_cpu(device).copy_(host);
  round_to_device(as_cpu(device));
  block->external = true;
}

static void copy_on_device(const Tensor& from, const Tensor& to) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  auto& r = recorder();
  Line line(op, false), graph_line(op, true);
  {
    std::lock_guard lock(r.mutex);
    const auto& names = op.schema().arguments();
    for (auto* l : {&line, &graph_line}) {
      if (l == &graph_line && !is_lazy()) continue;
      l->add_argument(names[0], to);
      l->add_argument(names[1], from);
    }
    r.add_operator(line.finish({to}), is_lazy() ? graph_line.finish({to}) : "");
  }
  r.count("launch", "aten::copy_");
  auto target = as_cpu(to);
  target.copy_(as_cpu(from));
  round_to_device(target);
}

static Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (is_on_device(from) && is_on_device(to)) {
    copy_on_device(from, to);
  } else if (is_on_device(to)) {
    upload(from, to, non_blocking);
  } else {
    bool queued = non_blocking && settings.mode == 1 && is_pinned(to.data_ptr());
    read_by_host(queued ? "queued_copy" : "copy");
    const_cast<Tensor&>(to).copy_(as_cpu(from));
  }
  return to;
}

static Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

static at::Scalar local_scalar(const Tensor& self) {
  read_by_host("item");
  return at::_local_scalar_dense(as_cpu(self));
}

static const Tensor& resize(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto alias = as_cpu(self);
  alias.resize_(size, format);
  write_back(self, alias);
  return self;
}

static Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::cpu::set_(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

static Tensor& set_storage(Tensor& self, at::Storage source) {
  auto count = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return at::cpu::set_(self, std::move(source), 0, {count}, {});
}

static Tensor& set_nothing(Tensor& self) {
  return set_tensor(self, at::empty({0}, self.options()));
}

// Attention is torch's composite form: none of its fused kernels exists on the device.
static void choose_attention(const c10::OperatorHandle& op, Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  stack->emplace_back(int64_t(0));  // SDPBackend::math
}

TORCH_LIBRARY_IMPL(_, HPU, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", [](const Tensor& t, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
    recorder().count("view");
    return at::cpu::as_strided(t, size, stride, offset);
  });
  m.impl("view", [](const Tensor& t, at::IntArrayRef size) {
    recorder().count("view");
    return at::native::view(t, size);
  });
  m.impl("_reshape_alias", [](const Tensor& t, at::IntArrayRef size, at::IntArrayRef stride) {
    recorder().count("view");
    return at::native::_reshape_alias(t, size, stride);
  });
  m.impl("unfold", [](const Tensor& t, int64_t dim, int64_t size, int64_t step) {
    recorder().count("view");
    return at::native::unfold(t, dim, size, step);
  });
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset",
         [](Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) -> Tensor& {
           return at::cpu::set_(self, std::move(source), offset, size, stride);
         });
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_", set_nothing);
  m.impl("_fused_sdp_choice", torch::CppFunction::makeFromBoxedFunction<&choose_attention>());
  m.impl("record_stream", [](Tensor&, at::Stream) {});
}

// Whether an operator gets the boxed kernel: it computes something, and is native or has a kernel for CPU tensors.
// Others (views, factories, composites that the bridge lacks too) are left to torch, which decomposes them.
static bool is_boxed(const c10::OperatorHandle& op) {
  using K = c10::DispatchKey;
  static const std::set<std::string> own{
      "empty", "empty_strided", "as_strided", "view", "_reshape_alias", "unfold", "_copy_from", "copy",
      "_copy_from_and_resize", "_local_scalar_dense", "resize", "set", "record_stream", "is_pinned", "_pin_memory",
      "_to_copy", "empty_like", "_resize_output", "pin_memory", "as_strided_", "lift_fresh", "lift_fresh_copy"};
  auto base = base_name(op.operator_name());
  if (!op.hasSchema() || own.count(base) || op.hasKernelForDispatchKey(K::HPU)) return false;
  bool takes_tensor = false;
  for (const auto& argument : op.schema().arguments()) {
    const auto type = argument.type()->annotation_str();
    if (type.find("Device") != std::string::npos) return false;
    takes_tensor |= type.find("Tensor") != std::string::npos;
  }
  for (const auto& result : op.schema().returns()) {
    if (result.alias_info() && !result.alias_info()->isWrite()) return false;
  }
  if (!takes_tensor || op.hasKernelForDispatchKey(K::CompositeImplicitAutograd)) return false;
  if (op.hasKernelForDispatchKey(K::CPU) || op.hasKernelForDispatchKey(K::CompositeExplicitAutogradNonFunctional))
    return true;
  return op.hasKernelForDispatchKey(K::CompositeExplicitAutograd) &&
      (is_listed(op) || settings.always_fallback.count(base));
}

static torch::Library& library(c10::DispatchKey key) {
  static std::map<c10::DispatchKey, torch::Library*> libraries;
  auto& library = libraries[key];
  if (!library) library = new torch::Library(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
  return *library;
}

// Names of the operators that got the boxed kernel.
static std::set<std::string> register_operators() {
  std::set<std::string> names;
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    auto op = dispatcher.findOp(name);
    if (!op || !is_boxed(*op)) continue;
    library(c10::DispatchKey::HPU).impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
    names.insert("aten::" + base_name(name));
  }
  return names;
}

// ---- autocast -------------------------------------------------------------------------------------------------------

static bool is_castable(const Tensor& t) {
  return is_on_device(t) && at::isFloatingType(t.scalar_type()) && t.scalar_type() != at::kDouble;
}

static IValue cast(const IValue& value, at::ScalarType type) {
  if (value.isTensor()) {
    const auto& t = value.toTensor();
    return is_castable(t) && t.scalar_type() != type ? IValue(t.to(type)) : value;
  }
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(cast(t, type).toTensor());
    return list;
  }
  return value;
}

// The widest type among the arguments, starting from autocast's own.
static at::ScalarType widest(const Stack& arguments, at::ScalarType type) {
  auto look = [&](const Tensor& t) {
    if (is_castable(t) && t.scalar_type() == at::kFloat) type = at::kFloat;
  };
  for (const auto& value : arguments) {
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList()) {
      for (const Tensor& t : value.toTensorVector()) look(t);
    }
  }
  return type;
}

enum class Policy { lower, lower_first, fp32, promote };

template <Policy policy>
static void autocast(const c10::OperatorHandle& op, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard outside(c10::DispatchKey::AutocastHPU);
  auto count = op.schema().arguments().size();
  Stack arguments = torch::jit::last(*stack, count).vec();
  auto type = at::autocast::get_autocast_dtype(at::kHPU);
  if (policy == Policy::fp32) type = at::kFloat;
  if (policy == Policy::promote) type = widest(arguments, type);
  auto casts = policy == Policy::lower_first ? 1 : count;
  for (size_t i = 0; i < casts; i++) torch::jit::peek(*stack, i, count) = cast(arguments[i], type);
  op.callBoxed(stack);
}

TORCH_LIBRARY_IMPL(_, AutocastHPU, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

static void register_autocast(const std::string& op, const std::string& policy) {
  auto& autocasts = library(c10::DispatchKey::AutocastHPU);
  auto add = [&](torch::CppFunction kernel) { autocasts.impl(op.c_str(), std::move(kernel)); };
  using torch::CppFunction;
  if (policy == "lower") add(CppFunction::makeFromBoxedFunction<&autocast<Policy::lower>>());
  if (policy == "lower_first") add(CppFunction::makeFromBoxedFunction<&autocast<Policy::lower_first>>());
  if (policy == "fp32") add(CppFunction::makeFromBoxedFunction<&autocast<Policy::fp32>>());
  if (policy == "promote") add(CppFunction::makeFromBoxedFunction<&autocast<Policy::promote>>());
}

// ---- Python ---------------------------------------------------------------------------------------------------------

static py::list events_since(size_t start) {
  auto& r = recorder();
  std::lock_guard lock(r.mutex);
  py::list events;
  for (size_t i = start; i < r.log.size(); i++) {
    const auto& event = r.log[i];
    events.append(py::make_tuple(event.kind, event.text, event.phase));
  }
  return events;
}

static size_t begin_watch() {
  auto& r = recorder();
  std::lock_guard lock(r.mutex);
  r.watchers++;
  return r.log.size();
}

static void end_watch() {
  auto& r = recorder();
  std::lock_guard lock(r.mutex);
  if (--r.watchers == 0) r.log.clear();
}

static std::map<std::string, int64_t> memory_stats() {
  return {{"InUse", memory.in_use},           {"MaxInUse", memory.peak}, {"NumAllocs", memory.allocations},
          {"NumFrees", memory.frees},         {"MaxAllocSize", memory.largest},
          {"ActiveAllocs", memory.allocations - memory.frees}};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("hide_cuda", &hide_cuda);
  m.def("configure", [](int mode, bool tanh_gelu, std::optional<std::set<std::string>> allowed_fallbacks,
                        bool stable_sort_may_fall_back) {
    settings.stable_sort_may_fall_back = stable_sort_may_fall_back;
    settings.mode = mode;
    settings.tanh_gelu = tanh_gelu;
    settings.restricts_fallback = allowed_fallbacks.has_value();
    settings.allowed_fallbacks = allowed_fallbacks.value_or(std::set<std::string>());
  });
  using Names = std::vector<std::string>;
  m.def("register_operators", [](const Names& native, const Names& not_native, const Names& always_fallback,
                                 const Names& uploaded) {
    for (const auto& name : native) settings.native.insert(without_underscore(name));
    settings.not_native.insert(not_native.begin(), not_native.end());
    settings.always_fallback.insert(always_fallback.begin(), always_fallback.end());
    settings.uploaded.insert(uploaded.begin(), uploaded.end());
    return register_operators();
  });
  m.def("register_autocast", &register_autocast);
  m.def("set_fault", [](const std::string& kind, const std::string& op) {
    settings.faults[without_underscore(op.substr(op.find("::") + 2))] = kind;
  });
  m.def("observe", [](py::object observer) { settings.observer = observer.release().ptr(); });
  m.def("flush", &flush);
  m.def("join", &join);
  m.def("synchronize", [] { read_by_host("synchronize"); });
  m.def("begin_watch", &begin_watch);
  m.def("end_watch", &end_watch);
  m.def("events_since", &events_since);
  m.def("add_compiled", [](std::vector<std::string> lines) { recorder().add_compiled(std::move(lines)); });
  m.def("enter_graph", [] {
    recorder().count("launch", "graph");
    open_graphs++;
  });
  m.def("leave_graph", [] { open_graphs--; });
  m.def("set_phase", [](std::string name) {
    std::lock_guard lock(recorder().mutex);
    return std::exchange(recorder().phase, std::move(name));
  });
  m.def("graph_lines", [](size_t index) { return recorder().graphs.at(index); });
  m.def("graph_count", [] { return recorder().graphs.size(); });
  m.def("fallbacks", [] { return recorder().fallbacks; });
  m.def("memory_stats", &memory_stats);
  m.def("reset_peak", [] { memory.peak = memory.in_use.load(); });
  m.def("as_cpu", &as_cpu);
  m.def("default_generator", &default_generator);
}
