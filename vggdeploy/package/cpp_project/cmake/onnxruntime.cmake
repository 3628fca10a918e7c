# ONNX Runtime's C++ API: its own download, or Debian 13's libonnxruntime-dev.
set(ONNXRUNTIME_ROOT "" CACHE PATH "The directory with include/ and lib/ of ONNX Runtime")

find_path(ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h HINTS ${ONNXRUNTIME_ROOT}/include PATH_SUFFIXES onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${ONNXRUNTIME_ROOT}/lib)
if(NOT ONNXRUNTIME_INCLUDE OR NOT ONNXRUNTIME_LIBRARY)
  message(FATAL_ERROR "ONNX Runtime was not found: give -DONNXRUNTIME_ROOT=DIR, the directory with its include/ and lib/")
endif()

target_sources(classify PRIVATE src/onnxruntime.cpp)
target_include_directories(classify SYSTEM PRIVATE ${ONNXRUNTIME_INCLUDE})
target_link_libraries(classify PRIVATE ${ONNXRUNTIME_LIBRARY})
