// The stand-in's library: a TensorRT and a CUDA runtime on the host. The "engine" adds up the pixels, and class k gets the sum
// plus k; a second output gets the batch's shape. Work in a stream is done when somebody waits for it, so that who forgets to
// wait reads what was there before. Memory is malloc's: the address sanitizer finds what is written past its end.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <NvInfer.h>

namespace {

using Work = std::vector<std::function<void()>>;
constexpr int kOther = 5;  // values of the output that nobody reads

struct Engine final : nvinfer1::ICudaEngine {
    int classes = 0;
    std::vector<std::string> names;  // the input first; the scores last
};

struct Context final : nvinfer1::IExecutionContext {
    const Engine* engine = nullptr;
    std::map<std::string, void*> addresses;
    nvinfer1::Dims shape{};
};

std::string fault() {
    const char* name = std::getenv("STANDIN_FAULT");
    return name ? name : "";
}

cudaError_t failing(const char* name) { return fault() == name ? cudaErrorMemoryAllocation : cudaSuccess; }

}  // namespace

namespace nvinfer1 {

bool IExecutionContext::setInputShape(char const* name, Dims const& dims) noexcept {
    auto& self = static_cast<Context&>(*this);
    self.shape = dims;
    return name == self.engine->names.front() && dims.d[0] == 1 && fault() != "setInputShape";
}

bool IExecutionContext::setTensorAddress(char const* name, void* data) noexcept {
    static_cast<Context&>(*this).addresses[name] = data;
    return data != nullptr && fault() != "setTensorAddress";
}

Dims IExecutionContext::getTensorShape(char const* name) const noexcept {
    const auto& engine = *static_cast<const Context&>(*this).engine;
    if (name == engine.names.back()) return Dims{2, {1, engine.classes}};
    return Dims{2, {1, kOther}};
}

bool IExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
    const auto& self = static_cast<const Context&>(*this);
    if (self.addresses.size() != self.engine->names.size() || fault() == "enqueueV3") return false;
    reinterpret_cast<Work*>(stream)->push_back([&self] {
        const auto* pixels = static_cast<const unsigned char*>(self.addresses.at(self.engine->names[0]));
        auto* other = static_cast<float*>(self.addresses.at(self.engine->names[1]));
        auto* scores = static_cast<float*>(self.addresses.at(self.engine->names[2]));
        unsigned sum = 0;
        for (std::int64_t i = 0; i < self.shape.d[1] * self.shape.d[2] * self.shape.d[3]; ++i) sum += pixels[i];
        for (int i = 0; i < kOther; ++i) other[i] = 1;
        for (int k = 0; k < self.engine->classes; ++k) scores[k] = static_cast<float>(sum) + static_cast<float>(k);
    });
    return true;
}

IExecutionContext* ICudaEngine::createExecutionContext() noexcept {
    if (fault() == "createExecutionContext") return nullptr;
    auto* made = new Context;
    made->engine = static_cast<Engine*>(this);
    return made;
}

std::int32_t ICudaEngine::getNbIOTensors() const noexcept {
    return static_cast<std::int32_t>(static_cast<const Engine&>(*this).names.size());
}

char const* ICudaEngine::getIOTensorName(std::int32_t index) const noexcept {
    return static_cast<const Engine&>(*this).names[static_cast<std::size_t>(index)].c_str();
}

TensorIOMode ICudaEngine::getTensorIOMode(char const* name) const noexcept {
    return name == static_cast<const Engine&>(*this).names.front() ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}

// A file "ftrt CLASSES INPUT OTHER OUTPUT".
ICudaEngine* IRuntime::deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
    const std::string text(static_cast<const char*>(blob), size);
    char input[64], other[64], output[64];
    auto made = new Engine;
    if (std::sscanf(text.c_str(), "ftrt %d %63s %63s %63s", &made->classes, input, other, output) != 4) {
        delete made;
        return nullptr;
    }
    made->names = {input, other, output};
    return made;
}

IRuntime* createInferRuntime(ILogger& logger) noexcept {
    if (fault() == "createInferRuntime") {
        logger.log(ILogger::Severity::kERROR, "CUDA initialization failure with error: 35");
        return nullptr;
    }
    logger.log(ILogger::Severity::kINFO, "not to be seen");
    return new IRuntime;
}

}  // namespace nvinfer1

extern "C" {

cudaError_t cudaMalloc(void** address, size_t bytes) {
    const auto status = failing("cudaMalloc");
    if (status == cudaSuccess) *address = std::malloc(bytes);
    return status;
}
cudaError_t cudaFree(void* address) {
    std::free(address);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = reinterpret_cast<cudaStream_t>(new Work);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete reinterpret_cast<Work*>(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    auto& work = *reinterpret_cast<Work*>(stream);
    for (auto& step : work) step();
    work.clear();
    return failing("cudaStreamSynchronize");
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    reinterpret_cast<Work*>(stream)->push_back([=] { std::memcpy(target, source, bytes); });
    return failing("cudaMemcpyAsync");
}
const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
}
