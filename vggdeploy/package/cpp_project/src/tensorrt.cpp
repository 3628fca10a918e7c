// TensorRT 10 and newer: an engine, on the GPU and with the release it was built for. Loading an engine runs its code: take
// one only from a bundle whose signature was checked.
#include <iostream>
#include <utility>

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include "decode.hpp"
#include "image.hpp"
#include "model.hpp"

namespace {

void check(cudaError_t code) {
    if (code != cudaSuccess) throw Error(std::string("CUDA: ") + cudaGetErrorString(code));
}

void check(bool good, const char* what) {
    if (!good) throw Error(std::string("TensorRT refuses: ") + what);
}

class Log final : public nvinfer1::ILogger {
    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << text << "\n";
    }
};

class DeviceMemory {
public:
    explicit DeviceMemory(std::size_t bytes) { check(cudaMalloc(&address_, bytes)); }
    ~DeviceMemory() { cudaFree(address_); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    void* get() const { return address_; }

private:
    void* address_ = nullptr;
};

class Stream {
public:
    Stream() { check(cudaStreamCreate(&stream_)); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

class TensorRt final : public Classifier {
public:
    explicit TensorRt(const Model& model)
        : scores_(static_cast<std::size_t>(model.classes)),
          pixels_on_gpu_(static_cast<std::size_t>(model.crop) * static_cast<std::size_t>(model.crop) *
                         static_cast<std::size_t>(model.channels)),
          scores_on_gpu_(scores_.size() * sizeof(float)) {
        const auto bytes = read_file(model.file);
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        check(runtime_ != nullptr, "the runtime does not start");
        engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
        check(engine_ != nullptr, "this engine (another GPU, or another release of TensorRT)");
        context_.reset(engine_->createExecutionContext());
        check(context_ != nullptr, "to make a context (is there enough GPU memory?)");
        const nvinfer1::Dims4 shape{1, model.crop, model.crop, model.channels};
        check(context_->setInputShape(model.input.c_str(), shape), "a batch of 1");
        check(context_->setTensorAddress(model.input.c_str(), pixels_on_gpu_.get()), "the input's address");
        // Every output needs an address, also those that nobody reads.
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
            void* address = scores_on_gpu_.get();
            if (model.output != name) {
                others_.push_back(std::make_unique<DeviceMemory>(bytes_of(context_->getTensorShape(name))));
                address = others_.back()->get();
            }
            check(context_->setTensorAddress(name, address), name);
        }
    }

    std::vector<float> run(const std::vector<std::uint8_t>& image) override {
        check(cudaMemcpyAsync(pixels_on_gpu_.get(), image.data(), image.size(), cudaMemcpyHostToDevice, stream_.get()));
        check(context_->enqueueV3(stream_.get()), "to run");
        check(cudaMemcpyAsync(scores_.data(), scores_on_gpu_.get(), scores_.size() * sizeof(float), cudaMemcpyDeviceToHost,
                              stream_.get()));
        check(cudaStreamSynchronize(stream_.get()));
        return scores_;
    }

private:
    static std::size_t bytes_of(const nvinfer1::Dims& dims) {
        std::size_t count = sizeof(float);
        for (int i = 0; i < dims.nbDims; ++i) count *= static_cast<std::size_t>(dims.d[i]);
        return count;
    }

    Log log_;
    std::vector<float> scores_;
    Stream stream_;
    DeviceMemory pixels_on_gpu_, scores_on_gpu_;
    std::vector<std::unique_ptr<DeviceMemory>> others_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

}  // namespace

std::unique_ptr<Classifier> open_classifier(const Model& model, const std::string& device, int) {
    if (device != "cuda") throw Error("TensorRT runs on a GPU: give --device cuda");
    return std::make_unique<TensorRt>(model);
}
