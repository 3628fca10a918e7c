// What the packaged C++ project needs of TensorRT's header. It compiles against the stand-in's, and against the real ones: with
// those of 10.3, 10.16, 11.0 and 11.1 it did on 30 November 2026.
#include <type_traits>
#include <utility>

#include <NvInfer.h>

using namespace nvinfer1;

#define GIVES(type, expression) \
    static_assert(std::is_same_v<decltype(expression), type>, #expression); \
    static_assert(noexcept(expression), #expression)

GIVES(IRuntime*, createInferRuntime(std::declval<ILogger&>()));
GIVES(ICudaEngine*, std::declval<IRuntime&>().deserializeCudaEngine(std::declval<void const*>(), std::size_t{}));
GIVES(IExecutionContext*, std::declval<ICudaEngine&>().createExecutionContext());
GIVES(std::int32_t, std::declval<ICudaEngine const&>().getNbIOTensors());
GIVES(char const*, std::declval<ICudaEngine const&>().getIOTensorName(0));
GIVES(TensorIOMode, std::declval<ICudaEngine const&>().getTensorIOMode(""));
GIVES(bool, std::declval<IExecutionContext&>().setInputShape("", std::declval<Dims const&>()));
GIVES(bool, std::declval<IExecutionContext&>().setTensorAddress("", std::declval<void*>()));
GIVES(Dims, std::declval<IExecutionContext const&>().getTensorShape(""));
GIVES(bool, std::declval<IExecutionContext&>().enqueueV3(std::declval<cudaStream_t>()));

static_assert(std::is_base_of_v<Dims, Dims4> && std::is_constructible_v<Dims4, int, int, int, int>);
static_assert(std::is_same_v<decltype(Dims::nbDims), std::int32_t>);
static_assert(std::is_same_v<std::remove_extent_t<decltype(Dims::d)>, std::int64_t>);
static_assert(static_cast<int>(TensorIOMode::kOUTPUT) == 2);
static_assert(static_cast<int>(ILogger::Severity::kWARNING) == 2);
static_assert(std::has_virtual_destructor_v<IRuntime> && std::has_virtual_destructor_v<ICudaEngine>);
static_assert(std::has_virtual_destructor_v<IExecutionContext>);
static_assert(std::is_abstract_v<ILogger>);

class Log final : public ILogger {
    void log(Severity, char const*) noexcept override {}
};
static_assert(!std::is_abstract_v<Log>);
