# TensorRT 10 or newer, and the CUDA runtime.
set(TENSORRT_ROOT "" CACHE PATH "The directory with include/ and lib/ of TensorRT")
find_package(CUDAToolkit REQUIRED)

find_path(TENSORRT_INCLUDE NvInfer.h HINTS ${TENSORRT_ROOT}/include)
find_library(NVINFER_LIBRARY nvinfer HINTS ${TENSORRT_ROOT}/lib)
if(NOT TENSORRT_INCLUDE OR NOT NVINFER_LIBRARY)
  message(FATAL_ERROR "TensorRT was not found: give -DTENSORRT_ROOT=DIR, the directory with its include/ and lib/")
endif()

target_sources(classify PRIVATE src/tensorrt.cpp)
target_include_directories(classify SYSTEM PRIVATE ${TENSORRT_INCLUDE})
target_link_libraries(classify PRIVATE ${NVINFER_LIBRARY} CUDA::cudart)
