// A stand-in for TensorRT's header: what the packaged C++ project uses of it, declared as the real one declares it, and no more.
// contract.cpp says what both have to be; library.cpp computes without a GPU. Nothing here is NVIDIA's text.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace nvinfer1 {

struct Dims {
    static constexpr std::int32_t MAX_DIMS = 8;
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};

struct Dims4 : Dims {
    Dims4(std::int64_t d0, std::int64_t d1, std::int64_t d2, std::int64_t d3) : Dims{4, {d0, d1, d2, d3}} {}
};

enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };

class ILogger {
public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, char const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
public:
    virtual ~IExecutionContext() noexcept = default;
    bool setInputShape(char const* name, Dims const& dims) noexcept;
    bool setTensorAddress(char const* name, void* data) noexcept;
    Dims getTensorShape(char const* name) const noexcept;
    bool enqueueV3(cudaStream_t stream) noexcept;
};

class ICudaEngine {
public:
    virtual ~ICudaEngine() noexcept = default;
    IExecutionContext* createExecutionContext() noexcept;
    std::int32_t getNbIOTensors() const noexcept;
    char const* getIOTensorName(std::int32_t index) const noexcept;
    TensorIOMode getTensorIOMode(char const* name) const noexcept;
};

class IRuntime {
public:
    virtual ~IRuntime() noexcept = default;
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
