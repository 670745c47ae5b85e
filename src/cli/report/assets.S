// The files of the pages as they are.
        .macro  asset name, path:vararg
        .balign 16
        .globl  \name
        .globl  \name\()_end
\name:
        .incbin \path
\name\()_end:
        .endm

        .section .rodata.report, "a"
        asset   continuo_report_css, CONTINUO_REPORT_CSS
        asset   continuo_report_page_js, CONTINUO_REPORT_PAGE_JS
        asset   continuo_report_compare_html, CONTINUO_REPORT_COMPARE_HTML
        asset   continuo_report_compare_js, CONTINUO_REPORT_COMPARE_JS
        asset   continuo_report_watch_html, CONTINUO_REPORT_WATCH_HTML
        asset   continuo_report_watch_js, CONTINUO_REPORT_WATCH_JS
        asset   continuo_report_chart_js, CONTINUO_CHART_JS
        .section .note.GNU-stack, "", %progbits
