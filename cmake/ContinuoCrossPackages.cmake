# The same targets as ContinuoNativePackages.cmake, for another architecture: from the packages of the machine that
# builds, nothing else installed. Libraries of headers alone serve every architecture, but /usr/include as a whole does
# not (it has the build machine's C library in it), so only theirs are linked into a folder of their own; GoogleTest is
# built from its sources (package googletest).
set(folder ${CMAKE_BINARY_DIR}/headers)
file(MAKE_DIRECTORY ${folder})
foreach(name fmt tl nlohmann CLI toml++ xxhash.h)
    if(NOT EXISTS /usr/include/${name})
        message(FATAL_ERROR "/usr/include/${name} is missing: run scripts/install-packages")
    endif()
    file(CREATE_LINK /usr/include/${name} ${folder}/${name} SYMBOLIC)
endforeach()

foreach(target fmt::fmt tl::expected nlohmann_json::nlohmann_json CLI11::CLI11 tomlplusplus::tomlplusplus PkgConfig::xxhash)
    add_library(${target} INTERFACE IMPORTED)
    target_include_directories(${target} SYSTEM INTERFACE ${folder})
endforeach()
target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY=1)
target_compile_definitions(PkgConfig::xxhash INTERFACE XXH_INLINE_ALL)

if(CONTINUO_TESTS)
    set(INSTALL_GTEST OFF)
    set(googletest /usr/src/googletest)
    if(NOT EXISTS ${googletest}/CMakeLists.txt)
        message(FATAL_ERROR "${googletest} is missing: run scripts/install-packages")
    endif()
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
    add_subdirectory(${googletest} ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL SYSTEM)
    foreach(target gtest gtest_main gmock)
        if(NOT TARGET GTest::${target})
            add_library(GTest::${target} ALIAS ${target})
        endif()
    endforeach()
endif()

# Static, all of it: no shared library of that architecture is on the machine that builds.
add_link_options(-static)
