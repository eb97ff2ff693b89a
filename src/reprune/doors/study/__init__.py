"""The paper's grid on one model: cells, their records, tables and figures."""
