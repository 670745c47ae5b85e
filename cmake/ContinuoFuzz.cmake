# A fuzz target for foreign bytes, as two programs: a replay of its seeds and a fixed number of mutations, which any
# compiler builds; and libFuzzer with ASan and UBSan, which needs clang, whatever the rest is built with.
#
#   continuo_fuzz(decoders PROGRAM continuo_decode SOURCES decode_fuzz.cc SEEDS folder... INSTRUMENT continuo_state ...)
#
# makes continuo_decode_replay, continuo_decode_fuzz, and the tests fuzz.decoders.replay and fuzz.decoders.libfuzzer.
#   INSTRUMENT        modules that libFuzzer sees into: all their sources are built once more, with sanitizers
#   INSTRUMENT_FILES  single sources of other modules, the same
#   LINK              modules that the replay links to; for libFuzzer they give what is not instrumented
#   INCLUDE           folders of private headers
#   SEEDS_FROM        a target that makes some of the SEEDS; built first
#   RUNS, SECONDS     mutations of the replay; time of libFuzzer in the test
#   MAX_LEN           bytes of the longest input that libFuzzer makes

# libFuzzer is looked for once, by building with it.
function(continuo_find_libfuzzer)
    if(DEFINED CONTINUO_LIBFUZZER)
        return()
    endif()
    find_program(CONTINUO_FUZZ_CLANG NAMES clang++ clang++-19 clang++-16 clang++-14)
    set(works FALSE)
    if(CONTINUO_FUZZ_CLANG)
        file(WRITE ${CMAKE_BINARY_DIR}/libfuzzer-probe.cc
             "extern \"C\" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n")
        execute_process(COMMAND ${CONTINUO_FUZZ_CLANG} -fsanitize=fuzzer,address,undefined libfuzzer-probe.cc
                                -o libfuzzer-probe
                        WORKING_DIRECTORY ${CMAKE_BINARY_DIR}
                        RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
        if(status EQUAL 0)
            set(works TRUE)
        endif()
    endif()
    set(CONTINUO_LIBFUZZER ${works} CACHE INTERNAL "clang++ with libFuzzer is there")
endfunction()

# Objects of `sources` as libFuzzer wants them, in `result`.
function(continuo_fuzz_objects result flags sources)
    set(objects)
    foreach(source ${sources})
        file(RELATIVE_PATH object ${PROJECT_SOURCE_DIR}/src ${source})
        string(REPLACE "/" "_" object ${object})
        set(object ${CMAKE_CURRENT_BINARY_DIR}/${object}.o)
        add_custom_command(OUTPUT ${object}
                           COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${CONTINUO_FUZZ_CLANG} ${flags}
                                   -MD -MF ${object}.d -c ${source} -o ${object}
                           DEPENDS ${source} DEPFILE ${object}.d VERBATIM
                           COMMENT "Building ${source} for libFuzzer")
        list(APPEND objects ${object})
    endforeach()
    set(${result} ${objects} PARENT_SCOPE)
endfunction()

function(continuo_fuzz name)
    if(CMAKE_CROSSCOMPILING)
        return()
    endif()
    cmake_parse_arguments(F "" "PROGRAM;RUNS;SECONDS;MAX_LEN;SEEDS_FROM"
                          "SOURCES;SEEDS;INSTRUMENT;INSTRUMENT_FILES;LINK;INCLUDE" ${ARGN})
    set(work ${CMAKE_CURRENT_BINARY_DIR}/found)
    file(MAKE_DIRECTORY ${work})

    set(replay ${F_PROGRAM}_replay)
    add_executable(${replay} ${F_SOURCES} ${PROJECT_SOURCE_DIR}/src/state/fuzz/mutate_main.cc)
    target_include_directories(${replay} PRIVATE ${F_INCLUDE})
    target_link_libraries(${replay} PRIVATE ${F_LINK} continuo_warnings)
    if(F_SEEDS_FROM)
        add_dependencies(${replay} ${F_SEEDS_FROM})
    endif()
    add_test(NAME fuzz.${name}.replay COMMAND ${replay} --runs ${F_RUNS} --seed 1 ${F_SEEDS}
             WORKING_DIRECTORY ${work})
    set_tests_properties(fuzz.${name}.replay PROPERTIES LABELS fuzz TIMEOUT 120)

    # With sanitizers the whole build has them, and its unit tests; the fuzzer belongs to the plain one.
    if(CONTINUO_SANITIZE)
        return()
    endif()
    continuo_find_libfuzzer()
    if(NOT CONTINUO_LIBFUZZER)
        add_test(NAME fuzz.${name}.libfuzzer
                 COMMAND sh -c "printf 'Skipped\\nclang++ with libFuzzer is not installed\\n'; exit 77")
        set_tests_properties(fuzz.${name}.libfuzzer PROPERTIES LABELS fuzz SKIP_RETURN_CODE 77)
        return()
    endif()

    set(flags -std=c++20 -O1 -g -fno-omit-frame-pointer -DFMT_HEADER_ONLY=1
              -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)
    file(GLOB modules ${PROJECT_SOURCE_DIR}/src/*/include ${PROJECT_SOURCE_DIR}/src/*/x86/include)
    foreach(folder ${modules} ${F_INCLUDE})
        list(APPEND flags -I${folder})
    endforeach()
    set(sources ${F_INSTRUMENT_FILES})
    foreach(source ${F_SOURCES})
        list(APPEND sources ${CMAKE_CURRENT_SOURCE_DIR}/${source})
    endforeach()
    foreach(library ${F_INSTRUMENT})
        get_target_property(names ${library} SOURCES)
        if(NOT names)  # headers alone
            continue()
        endif()
        get_target_property(folder ${library} SOURCE_DIR)
        list(TRANSFORM names PREPEND ${folder}/)
        list(APPEND sources ${names})
    endforeach()
    continuo_fuzz_objects(objects "${flags}" "${sources}")
    # Behind the objects: an archive's member is taken only for what no object has.
    set(archives)
    foreach(library ${F_LINK})
        get_target_property(type ${library} TYPE)
        if(NOT library IN_LIST F_INSTRUMENT AND NOT type STREQUAL "INTERFACE_LIBRARY")
            list(APPEND archives $<TARGET_FILE:${library}>)
        endif()
    endforeach()
    set(program ${CMAKE_BINARY_DIR}/${F_PROGRAM}_fuzz)
    add_custom_command(OUTPUT ${program}
                       COMMAND ${CONTINUO_FUZZ_CLANG} ${flags} ${objects} ${archives} -lxxhash -o ${program}
                       DEPENDS ${objects} ${archives} VERBATIM
                       COMMENT "Linking ${F_PROGRAM}_fuzz with libFuzzer")
    add_custom_target(${F_PROGRAM}_fuzz ALL DEPENDS ${program})
    if(F_SEEDS_FROM)
        add_dependencies(${F_PROGRAM}_fuzz ${F_SEEDS_FROM})
    endif()

    # What it finds to be new stays in ${work} and is a seed of the next run; an input that fails is left
    # there as crash-*.
    add_test(NAME fuzz.${name}.libfuzzer
             COMMAND ${program} -max_total_time=${F_SECONDS} -max_len=${F_MAX_LEN} -timeout=10
                     -rss_limit_mb=2048 -malloc_limit_mb=8 -detect_leaks=0 -print_final_stats=1
                     -verbosity=1 -artifact_prefix=${work}/ ${work} ${F_SEEDS})
    set_tests_properties(fuzz.${name}.libfuzzer PROPERTIES LABELS fuzz TIMEOUT 120)
endfunction()
