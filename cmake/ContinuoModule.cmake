# A module is one folder of src/: a static library with its own include folder and one test program.
#
#   continuo_module(state SOURCES codec.cc ... DEPS continuo_time continuo_abi TESTS codec_test.cc ...)
#
# makes continuo_state, and continuo_state_test where tests are built. A module without SOURCES is header-only.
# ARCH_INCLUDE: a second include folder, of headers that each architecture has its own version of.
# The layering is these link lines: a header of a module that is not linked is not found by the compiler.

add_library(continuo_warnings INTERFACE)
target_compile_options(continuo_warnings INTERFACE
    -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 12 reports these inside the standard library at -O2 (GCC bugs 105562, 105593); clang and ASan still look.
    target_compile_options(continuo_warnings INTERFACE
        -Wno-maybe-uninitialized -Wno-mismatched-new-delete -Wno-stringop-overflow -Wno-array-bounds -Wno-restrict -Wno-dangling-pointer)
endif()

function(continuo_module name)
    cmake_parse_arguments(M "" "ARCH_INCLUDE" "SOURCES;DEPS;TESTS;TEST_DEPS" ${ARGN})
    set(include ${CMAKE_CURRENT_SOURCE_DIR}/include)
    if(M_ARCH_INCLUDE)
        list(APPEND include ${CMAKE_CURRENT_SOURCE_DIR}/${M_ARCH_INCLUDE})
    endif()
    set(lib continuo_${name})
    if(M_SOURCES)
        add_library(${lib} STATIC ${M_SOURCES})
        target_include_directories(${lib} PUBLIC ${include})
        target_link_libraries(${lib} PUBLIC ${M_DEPS} PRIVATE continuo_warnings)
    else()
        add_library(${lib} INTERFACE)
        target_include_directories(${lib} INTERFACE ${include})
        target_link_libraries(${lib} INTERFACE ${M_DEPS})
    endif()
    add_library(continuo::${name} ALIAS ${lib})
    if(CONTINUO_TESTS AND M_TESTS)
        continuo_test(${lib}_test SOURCES ${M_TESTS} DEPS ${lib} ${M_TEST_DEPS})
    endif()
    if(CONTINUO_TESTS AND NOT CONTINUO_SANITIZE)
        continuo_headers_compile_alone(${lib} ${include})
    endif()
endfunction()

# A GoogleTest program whose every case is a test of ctest's. LABELS: unit (the default), kvm, lab, fuzz.
function(continuo_test name)
    cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
    if(NOT T_LABELS)
        set(T_LABELS unit)
    endif()
    if(NOT T_TIMEOUT)
        set(T_TIMEOUT 120)
    endif()
    # Another architecture's build has the tests that go to its emulated hosts, and they are run there.
    if(CMAKE_CROSSCOMPILING AND NOT "kvm" IN_LIST T_LABELS)
        return()
    endif()
    add_executable(${name} ${T_SOURCES})
    # What is under test is built as it ships; the tests themselves, mostly templates of test libraries, need no more.
    target_compile_options(${name} PRIVATE -O1)
    target_link_libraries(${name} PRIVATE ${T_DEPS} GTest::gtest GTest::gtest_main GTest::gmock continuo_warnings)
    if(CMAKE_CROSSCOMPILING)
        return()
    endif()
    gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT})
endfunction()

# style: every header compiles alone.
function(continuo_headers_compile_alone lib)
    set(headers)
    foreach(include ${ARGN})
        file(GLOB_RECURSE found RELATIVE ${include} CONFIGURE_DEPENDS ${include}/*.h)
        list(APPEND headers ${found})
    endforeach()
    set(units)
    foreach(header ${headers})
        string(REPLACE "/" "_" unit ${header})
        set(unit ${CMAKE_CURRENT_BINARY_DIR}/alone/${unit}.cc)
        file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"${header}\"\n")
        list(APPEND units ${unit})
    endforeach()
    if(units)
        add_library(${lib}_headers OBJECT ${units})
        target_link_libraries(${lib}_headers PRIVATE ${lib} continuo_warnings)
    endif()
endfunction()
