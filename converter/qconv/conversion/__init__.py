"""Placeholder until written: conversion."""
