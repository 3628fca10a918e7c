// ONNX Runtime: an ONNX variant.
#include <array>
#include <cstdlib>

#include <onnxruntime_cxx_api.h>

#include "image.hpp"
#include "model.hpp"

namespace {

// ONNX Runtime's official builds report to their maker, unless this is set before the first environment.
Ort::Env silent_environment() {
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    return Ort::Env(ORT_LOGGING_LEVEL_ERROR, "classify");
}

class OnnxRuntime final : public Classifier {
public:
    OnnxRuntime(const Model& model, const std::string& device, int threads)
        : environment_(silent_environment()), input_(model.input), output_(model.output),
          shape_{1, model.crop, model.crop, model.channels} {
        Ort::SessionOptions options;
        if (threads > 0) options.SetIntraOpNumThreads(threads);
        if (device == "cuda") {
            OrtCUDAProviderOptions cuda{};
            options.AppendExecutionProvider_CUDA(cuda);
            options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");  // or it would run on the CPU in silence
        }
        session_ = Ort::Session(environment_, model.file.c_str(), options);
    }

    std::vector<float> run(const std::vector<std::uint8_t>& image) override {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const Ort::Value pixels = Ort::Value::CreateTensor<std::uint8_t>(
            memory, const_cast<std::uint8_t*>(image.data()), image.size(), shape_.data(), shape_.size());
        const char* inputs[] = {input_.c_str()};
        const char* outputs[] = {output_.c_str()};
        auto found = session_.Run(Ort::RunOptions{nullptr}, inputs, &pixels, 1, outputs, 1);
        const float* scores = found.front().GetTensorData<float>();
        return {scores, scores + found.front().GetTensorTypeAndShapeInfo().GetElementCount()};
    }

private:
    Ort::Env environment_;
    std::string input_, output_;
    std::array<std::int64_t, 4> shape_;
    Ort::Session session_{nullptr};
};

}  // namespace

std::unique_ptr<Classifier> open_classifier(const Model& model, const std::string& device, int threads) {
    return std::make_unique<OnnxRuntime>(model, device, threads);
}
